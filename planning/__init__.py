"""Capacity planning: a trace through the real policy, router and scheduler, in simulated time.

traces/       when requests arrive and how large they are
simulated/    replicas that start, serve and end, and the ingress in front of them
deciding/     how many there should be: the service level, Ray Serve's default, a fixed number
machines.py   what they run on, and what that costs
plan.py       `sextet plan`: search.py tries, report.py and figures.py show
"""
