"""The private methods that the route calls, with the encodings of published accounts.

Sources: maderix/ANE (``_ANEInMemoryModel``, ``_ANERequest``, ``_ANEIOSurfaceObject``), maderix/ANE issue 54 and the
class dumps of tmc/apple and nst/iOS-Runtime-Headers (``_ANEClient``, ``_ANEModel``).
"""

from __future__ import annotations

#: Needed by any way of loading a program.
COMMON = {
    "+[_ANERequest requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:perfStats:procedureIndex:]": (
        "@72@0:8@16@24@32@40@48@56@64"
    ),
    "+[_ANEIOSurfaceObject objectWithIOSurface:]": "@24@0:8^{__IOSurface=}16",
}
CLIENT = {
    "+[_ANEClient sharedConnection]": "@16@0:8",
    "+[_ANEModel modelAtURL:key:]": "@32@0:8@16@24",
    "-[_ANEClient compileModel:options:qos:error:]": "B44@0:8@16@24I32^@36",
    "-[_ANEClient loadModel:options:qos:error:]": "B44@0:8@16@24I32^@36",
    "-[_ANEClient evaluateWithModel:options:request:qos:error:]": "B52@0:8@16@24@32I40^@44",
    "-[_ANEClient unloadModel:options:qos:error:]": "B44@0:8@16@24I32^@36",
    "-[_ANEClient purgeCompiledModel:]": "v24@0:8@16",
    "-[_ANEModel modelAttributes]": "@16@0:8",
}
IN_MEMORY = {
    "+[_ANEInMemoryModelDescriptor modelWithMILText:weights:optionsPlist:]": "@40@0:8@16@24@32",
    "+[_ANEInMemoryModel inMemoryModelWithDescriptor:]": "@24@0:8@16",
    "-[_ANEInMemoryModel hexStringIdentifier]": "@16@0:8",
    "-[_ANEInMemoryModel compileWithQoS:options:error:]": "B36@0:8I16@20^@28",
    "-[_ANEInMemoryModel loadWithQoS:options:error:]": "B36@0:8I16@20^@28",
    "-[_ANEInMemoryModel evaluateWithQoS:options:request:error:]": "B44@0:8I16@20@28^@36",
    "-[_ANEInMemoryModel unloadWithQoS:error:]": "B28@0:8I16^@20",
    "-[_ANEInMemoryModel modelAttributes]": "@16@0:8",
}
#: QOS_CLASS_DEFAULT; no other gave another latency (maderix/ANE m5result.md).
QOS = 21
