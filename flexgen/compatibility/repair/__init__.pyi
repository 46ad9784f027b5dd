from flexgen.energy.joints import EnergyModel as EnergyModel
from flexgen.energy.joints import FiniteJoint as FiniteJoint
from flexgen.energy.joints import PottsNetwork as PottsNetwork
from flexgen.energy.joints import TableEnergy as TableEnergy
from flexgen.energy.orders import OrderEnsemble as OrderEnsemble

from .distillation import TargetedPseudoLikelihood as TargetedPseudoLikelihood
from .distillation import distil as distil
from .penalty import ConsistencyPenalty as ConsistencyPenalty
from .penalty import Penalised as Penalised
from .scan_gain import RandomScan as RandomScan
from .scan_gain import random_scan as random_scan
