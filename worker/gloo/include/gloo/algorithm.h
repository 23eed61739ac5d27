// Replaces Gloo's header, which the PyTorch wheel does not contain. c10d's headers need only these
// names.
#pragma once

