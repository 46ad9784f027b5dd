from .antibodies import AMINO_ACIDS as AMINO_ACIDS
from .antibodies import antiberty as antiberty
from .forward_passes import ForwardCount as ForwardCount
from .token_alphabet import TokenAlphabet as TokenAlphabet
from .transformers_mlm import MaskedLanguageModel as MaskedLanguageModel
