"""A found optimizer replaced by one explicit mesa-layer.

The layer reads keys, values and queries from the stream by matrices that are solved in closed form
(`binding.py`), its penalty and output map are fitted to the task (`explicit.py`), and it takes the
place of all blocks from the first one that finds its pairs in the stream (`surgery.py`).
"""
