"""Judged trees to advantages and masses per token; numpy only. `treerl.credit.assign` is the entry."""
