"""``vistok studio``: a page in the browser over the package's Python calls.

Each tab is one module: a function that computes by public calls of the package, and one that says what came out as
HTML. Neither knows gradio; ``page`` wires them to inputs, and ``server`` answers the browser.
"""
