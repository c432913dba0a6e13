"""Reflect: windows in, findings, predictions and recommendations out.

Pure. No I/O, no clock, no storage, no unseeded randomness: it takes values and returns values. The nouns that it reads (Window,
Sketch, Shape, Plan) belong to the ground floor; those that it makes (Finding, Prediction, Recommendation, Outcome) are its own.
"""
