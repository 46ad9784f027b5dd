"""Joints known up to a constant: energies over finite sites, and ensembles of chain-rule orders."""

from flexgen.energy.joints import EnergyModel, FiniteJoint, PottsNetwork, TableEnergy
from flexgen.energy.orders import OrderEnsemble

__all__ = ["EnergyModel", "FiniteJoint", "OrderEnsemble", "PottsNetwork", "TableEnergy"]
