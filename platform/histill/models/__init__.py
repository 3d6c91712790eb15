"""Models: the CSAT encoder, segmenters built on timm encoders, and their cost.

Importing this package registers `csat`, `csat_fine` and `csat_tiny` (`histill.models.csat`) and `resnet_gn`
(`histill.models.gn_resnet`) with timm. Such a registry lives in the process, so every worker that builds a model by
name must import it.
"""

from histill.models import csat, gn_resnet

__all__ = ["csat", "gn_resnet"]
