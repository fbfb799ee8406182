"""TLS between processes: who is who, and who may call what.

names.py      what a certificate says of its holder
files.py      the process's own certificate, read anew when its files change
gate.py       which call is for whom
refusals.py   what is refused is counted, and logged now and then
links.py      connections and servers, all encrypted or none
authority.py  certificates for trying out
"""
