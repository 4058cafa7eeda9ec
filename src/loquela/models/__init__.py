"""One file per architecture: its config, its composition of bricks, its names on disk."""

from loquela.models.base import Config, Network, architecture, architectures, config_from_dict

__all__ = ["Config", "Network", "architecture", "architectures", "config_from_dict"]
