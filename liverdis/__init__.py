__version__ = "0.1.0"

import warnings

# fastai up to 2.8 meets this at import under torch 2.15; nothing a user could do about it
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
