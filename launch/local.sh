#!/usr/bin/env bash
# Several processes on this machine: bash launch/local.sh -n 2 train --config configs/quickstart.py --workdir runs/two
exec "${PYTHON:-python}" -m ssljax.launcher "$@"
