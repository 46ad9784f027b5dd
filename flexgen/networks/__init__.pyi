from .frame_unet import FrameUNet as FrameUNet
from .frames import FeatureCache as FeatureCache
from .residual_mlp import ResidualMLP as ResidualMLP
