"""Gin files of runs: finetune, pretrain, eval, infer."""
