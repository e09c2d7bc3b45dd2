"""``modelless demo``: a family of models, a load, and what came of it.

=============  =============================================================================
family         trains (or reuses) the models and writes their ``model.toml``
factories      their architectures, in torch
training       one recipe trained and exported; the only module that imports torch's training side
scenario       who asks for what, and when; pure
system         ``modelless up`` as a child, with a configuration of its own
measured       registers the family and reads what the system measured
load           drives the load through the client and writes down what came back
verify         reads Kafka by itself and counts replies per query
report         figures and a verdict from what was written down; pure
show, plot     the same for the eye
run            all of it in order
=============  =============================================================================
"""
