// Stands in for Gloo's own header, which the PyTorch wheel does not ship: c10d's headers need only these names.
#pragma once

