"""xAR: its network, and the entities that it draws one behind the other."""

from vistok.models.xar.entities import ENTITIES, Entities, parse_entities
from vistok.models.xar.model import FAMILY, XAR, XARConfig

__all__ = ["ENTITIES", "FAMILY", "XAR", "Entities", "XARConfig", "parse_entities"]
