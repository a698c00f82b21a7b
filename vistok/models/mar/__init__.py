"""MAR: its network, its diffusion head, and the head's process."""

from vistok.models.mar.diffusion import Diffusion, Transition, diffusion, respace
from vistok.models.mar.head import DiffLoss, HeadNetwork
from vistok.models.mar.model import FAMILY, MAR, MARConfig

__all__ = ["FAMILY", "MAR", "DiffLoss", "Diffusion", "HeadNetwork", "MARConfig", "Transition", "diffusion", "respace"]
