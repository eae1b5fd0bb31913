"""`python -m backgpt`, which is also what torchrun starts."""

from backgpt.cli import main

main()
