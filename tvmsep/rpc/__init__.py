"""TVM's tracker protocol, spoken with a time limit on every wait.

- `protocol`: messages between clients, boards and a tracker;
- `client`: which boards a tracker has, and borrowing one.
"""
