"""The assets: one module a group. Each names a stage of the pipeline and what to show of its artefact."""
