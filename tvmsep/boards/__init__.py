"""Bringing up boards: trackers and servers that stay up, deployment over ssh, and their health.

- `tracker`, `serve`: TVM's tracker and our server, supervised; `registrar` keeps the one known to
  the other; `background` runs either without a terminal;
- `deploy`, `tunnel`: a board that is reached over ssh;
- `lookup`: what a tracker knows, and whether its boards suit a target;
- `doctor`: whether a board can be tuned; `new_target`: a target file from what it reports;
- `protocol`: TVM's wire protocol, each wait with its limit.
"""
