"""The reference mesa-layer: least squares solved exactly at every prefix.

At position t it returns Phi_t q_t with

    Phi_t = argmin over Phi of
        1/2 sum_{j<=t} gamma^(t-j) beta_j |v_j - Phi k_j|^2 + 1/2 |Phi|_Lambda^2

(von Oswald et al. 2023, eq. 8, with their role names put right; gates as in von Oswald et al. 2025,
arXiv 2506.05233). Without gates that is C_t (G_t + Lambda)^-1 q_t with the moments
G_t = sum k_j k_j^T and C_t = sum v_j k_j^T. One file holds one way to solve it; all agree.
"""

from probe.mesa_layer.chunkwise import Chunkwise
from probe.mesa_layer.conjugate_gradient import ConjugateGradient
from probe.mesa_layer.diagnosis import Diagnosis, diagnose
from probe.mesa_layer.direct import Direct
from probe.mesa_layer.layer import Method, choose, mesa_layer
from probe.mesa_layer.precision import IllConditioned
from probe.mesa_layer.problem import ForgetAll, ForgetData, LeastSquares
from probe.mesa_layer.recursion import Recursion
from probe.mesa_layer.stream import InverseStream, MomentStream, stream_after

__all__ = [
    "Chunkwise",
    "ConjugateGradient",
    "Diagnosis",
    "Direct",
    "ForgetAll",
    "ForgetData",
    "IllConditioned",
    "InverseStream",
    "LeastSquares",
    "Method",
    "MomentStream",
    "Recursion",
    "choose",
    "diagnose",
    "mesa_layer",
    "stream_after",
]
