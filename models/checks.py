"""Types of hyperparameters: what a constructor's signature says is what a YAML file may hold."""

from typing import Annotated

from pydantic import Field

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
