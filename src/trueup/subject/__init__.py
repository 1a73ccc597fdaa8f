"""WHO: the only room that loads transformers and peft models."""
