"""The server under attack beside 200 well-behaved clients: `python -m tests.chaos`, `make chaos`.

`swarm` moves the attackers' sockets, `attacks` has what they do, `members` and `readers` are the well-behaved clients
and `recorder` checks what they got. `scene` puts them together with a server, and with its twin, which nobody attacks
and where more good clients live; `verdict` says whether the server held.
"""
