"""`python -m loquela`, and `torchrun … -m loquela`."""

from loquela.cli.main import main

if __name__ == "__main__":
    main()
