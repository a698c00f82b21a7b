"""Where in a picture: similarity as points, masks, boxes as text, and second looks."""

from vistok.projectors.grounding.interface import Grounder, Grounding, Region, load_grounder
from vistok.projectors.grounding.paint import paint

__all__ = ["Grounder", "Grounding", "Region", "load_grounder", "paint"]
