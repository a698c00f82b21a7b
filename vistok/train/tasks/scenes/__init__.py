"""What the toy world's labels teach: supervision beside published objectives, and networks trained on labels alone.

Nothing of this serves pictures of another origin, and no published objective needs it.
"""
