"""LoRec: keep sequential recommenders honest.

The names are loaded when they are first used, so that `import lorec` and the command line's help cost nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
