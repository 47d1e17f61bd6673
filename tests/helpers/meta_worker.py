"""One of the processes that train a hypernetwork together; prints the sum of its weights."""

import os
import sys
from pathlib import Path

from helpers.training import VITS, hypernet
from weightinit.training.config import MetaConfig
from weightinit.training.data import load_data
from weightinit.training.hypernet import meta_train


def main():
    net = hypernet(seed=int(os.environ["RANK"]))
    config = MetaConfig(steps=3, batch_size=16, lr=1e-3, label_smoothing=0.0)
    meta_train(net, load_data("digits"), config, sampler=VITS, out=Path(sys.argv[1]))
    total = sum(float(p.detach().double().sum()) for p in net.parameters())
    # one write, which the other process cannot come between
    os.write(1, f"sum {total}\n".encode())


if __name__ == "__main__":
    main()
