"""The page in the browser, health checks and metrics, on a listener of their own: `admin.listen`.

    listener.py  the thread that answers: waitress in the main process, so that it sees what is going on
    door.py      who is let in, and from which page a change may come
    app.py       the addresses: Bottle
    status.py    how the bridge is: three lamps, and why
    metrics.py   the same for Prometheus

It looks at the journal by a connection of its own, and at publisher, keeper and receivers by what they note down.
"""
