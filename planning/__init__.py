"""Capacity planning: a trace through the real policy, router and scheduler, in simulated time.

trace.py, arrivals.py   when requests arrive and how large they are
fleet.py                replicas that start, serve and end; the ingress in front of them
policies.py             how many there should be: the service level, Ray's default, a fixed number
machines.py             what they cost
search.py, report.py    `sextet plan`
"""
