"""Every operator by its name."""

from tests.fuzz.operators.convolutions import CONVOLUTIONS
from tests.fuzz.operators.layout import LAYOUT
from tests.fuzz.operators.norms import NORMS
from tests.fuzz.operators.operator import Operator
from tests.fuzz.operators.pointwise import POINTWISE
from tests.fuzz.operators.pooling import POOLING
from tests.fuzz.operators.products import PRODUCTS
from tests.fuzz.operators.python import PYTHON

FAMILIES = (CONVOLUTIONS, PRODUCTS, NORMS, POINTWISE, POOLING, LAYOUT, PYTHON)
OPERATORS: dict[str, Operator] = {operator.name: operator for family in FAMILIES for operator in family}
