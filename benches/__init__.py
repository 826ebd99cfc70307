"""`make bench`: what a delivery, a message and a connection cost here and on other servers, in one run on one machine.

Top to bottom, each knowing only what is below it: `run` the command line; `readme` `capacity` `plots` `table` what is
shown; `results` the file of figures; `runs` one workload against one server, and all in turns; `workloads` what is
asked; `servers` who is asked; `machine` where; `svg` how a picture is written. README.md says how to read the figures.
"""
