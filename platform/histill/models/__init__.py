"""Models: the CSAT encoder, segmenters built on timm encoders, and their cost.

Importing `histill.models.csat` registers `csat`, `csat_fine` and `csat_tiny` with timm, `histill.models.gn_resnet`
`resnet_gn`. timm's registry lives in the process, so every worker that builds a model by name must import them
(`histill.models.students` does).
"""
