"""Fine-tuning of pretrained models with the command line, data and files of ``mlx_lm.lora``."""
