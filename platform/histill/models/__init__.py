"""Models: the CSAT encoder, segmenters built on timm encoders, and their cost.

Importing `histill.models.csat` registers `csat` and `csat_tiny` with timm. timm's registry lives in the
process, so every worker that builds a model by name must import that module (`histill.models.students` does).
"""
