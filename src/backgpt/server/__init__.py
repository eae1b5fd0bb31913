"""The server: HTTP in OpenAI's shape, streams, and the page where text grows leftward.

Needs the extra `serve`. `app.create_app` makes it of models; nothing here runs a model but the
decode thread.
"""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""What only this machine is reached by."""
