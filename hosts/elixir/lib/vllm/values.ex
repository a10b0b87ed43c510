# What the wire has and Elixir has no type of its own for.

defmodule VLLM.Bytes do
  @moduledoc "Binary data that must not travel as text, even if it happens to be UTF-8."
  @enforce_keys [:data]
  defstruct [:data]
end

defmodule VLLM.Symbol do
  @moduledoc "A symbol that is no atom of this VM: atoms are never made from what others send."
  @enforce_keys [:name]
  defstruct [:name]
end

defmodule VLLM.Duration do
  @moduledoc "A Python timedelta."
  @enforce_keys [:days, :seconds, :microseconds]
  defstruct [:days, :seconds, :microseconds]
end

defmodule VLLM.Complex do
  @moduledoc "A complex number."
  @enforce_keys [:real, :imaginary]
  defstruct [:real, :imaginary]
end

defmodule VLLM.Ref do
  @moduledoc """
  An object that stays in its worker. `session`, `worker`, `number` and `type` are what the pool says
  of it, `scope` is how the calls of its session are made; see `VLLM.Runtime`.
  """
  @enforce_keys [:session, :worker, :number, :type]
  defstruct [:session, :worker, :number, :type, :scope]
  @type t :: %__MODULE__{}
end

defmodule VLLM.Array do
  @moduledoc "An n-dimensional array as bytes: C order, little-endian; `dtype` is `\"float32\"` and the like."
  @enforce_keys [:dtype, :shape, :data]
  defstruct [:dtype, :shape, :data]

  @sizes %{
    "bool" => 1,
    "int8" => 1,
    "uint8" => 1,
    "int16" => 2,
    "uint16" => 2,
    "float16" => 2,
    "bfloat16" => 2,
    "int32" => 4,
    "uint32" => 4,
    "float32" => 4,
    "int64" => 8,
    "uint64" => 8,
    "float64" => 8
  }

  @doc "Whether the bytes are as many as type and shape say."
  def valid?(%__MODULE__{dtype: dtype, shape: shape, data: data}) do
    is_map_key(@sizes, dtype) and is_list(shape) and is_binary(data) and
      Enum.all?(shape, &(is_integer(&1) and &1 >= 0)) and
      Enum.product([@sizes[dtype] | shape]) == byte_size(data)
  end

  @doc "The elements as a flat list of numbers; for the types that Elixir can read."
  def to_list(%__MODULE__{dtype: "float32", data: data}),
    do: for(<<x::little-float-32 <- data>>, do: x)

  def to_list(%__MODULE__{dtype: "float64", data: data}),
    do: for(<<x::little-float-64 <- data>>, do: x)

  def to_list(%__MODULE__{dtype: "int" <> bits, data: data}) do
    size = String.to_integer(bits)
    for <<x::little-signed-size(size) <- data>>, do: x
  end

  def to_list(%__MODULE__{dtype: "uint" <> bits, data: data}) do
    size = String.to_integer(bits)
    for <<x::little-size(size) <- data>>, do: x
  end
end
