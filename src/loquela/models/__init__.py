"""One file per architecture: its config, its composition of bricks, its names on disk."""

from loquela.models.base import Config, EncoderDecoder, Network, architecture, architectures, config_from_dict

__all__ = ["Config", "EncoderDecoder", "Network", "architecture", "architectures", "config_from_dict"]
