"""List the commands, or run one of them.

python -m experiments                             lists the commands
python -m experiments NAME --FLAG=VALUE ...       runs a command, as python -m experiments.NAME does
"""

from experiments import cli

if __name__ == "__main__":
    cli.choose()
