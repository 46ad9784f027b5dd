from . import adapters as adapters
from . import compatibility as compatibility
from . import data as data
from . import energy as energy
from . import errors as errors
from . import exact as exact
from . import metrics as metrics
from . import networks as networks
from . import plots as plots
from . import rng as rng
from . import tables as tables
from . import training as training
from . import video as video
from .conditional import CanSample as CanSample
from .conditional import Conditional as Conditional
from .conditional import HasLogProb as HasLogProb
from .conditional import HasMarginals as HasMarginals
from .diagnosis import diagnose as diagnose
from .laws import MaskDraw as MaskDraw
from .laws import MaskLaw as MaskLaw
from .query import Query as Query
from .space import Site as Site
from .space import Space as Space
from .table_model import TableModel as TableModel
from .tables.settings import TableSettings as TableSettings
from .video_pipeline import VideoPipeline as VideoPipeline

__version__: str
