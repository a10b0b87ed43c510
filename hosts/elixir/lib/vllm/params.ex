# What calls are given, kept as it was said: the pool knows every name and refuses the others.

defmodule VLLM.SamplingParams do
  @moduledoc "vLLM's sampling parameters, by their names."
  defstruct params: %{}
end

defmodule VLLM.PoolingParams do
  @moduledoc "vLLM's pooling parameters, by their names."
  defstruct params: %{}
end

defmodule VLLM.StructuredOutputs do
  @moduledoc "What an answer has to look like: `json`, `json_object`, `regex`, `choice` or `grammar`."
  defstruct params: %{}
end

defmodule VLLM.LoRARequest do
  @moduledoc "An adapter for one call."
  @enforce_keys [:lora_name, :lora_int_id, :lora_path]
  defstruct [:lora_name, :lora_int_id, :lora_path]
end

defmodule VLLM.LLM do
  @moduledoc "A model of the pool: what calls name. It is plain data and may be sent to any process."
  @enforce_keys [:name, :model]
  defstruct [:name, :model]
  @type t :: %__MODULE__{name: String.t(), model: String.t()}
end

defmodule VLLM.Arguments do
  @moduledoc "What callers write → what travels: names and atoms are text, keyword lists are maps."

  alias VLLM.{LoRARequest, PoolingParams, SamplingParams, StructuredOutputs}

  # Keys of the flat option list that are the bridge's, not Python's.
  @reserved [:__runtime__, :__args__, :idempotent]

  @doc "Split options into those of the call and the arguments that travel."
  def split(opts) do
    {reserved, rest} = Keyword.split(opts, @reserved)

    if reserved[:__args__] not in [nil, []],
      do:
        raise(
          VLLM.Error.invalid(
            :__args__,
            reserved[:__args__],
            "positional arguments have no place here; name them"
          )
        )

    {reserved[:__runtime__] || [], rest}
  end

  @doc "Turn a value into what any host could have sent."
  def plain(%module{params: params})
      when module in [SamplingParams, PoolingParams, StructuredOutputs],
      do: plain(params)

  def plain(%LoRARequest{} = lora), do: lora |> Map.from_struct() |> plain()
  def plain(%_{} = value), do: value
  def plain(map) when is_map(map), do: Map.new(map, fn {key, value} -> {key(key), plain(value)} end)
  def plain([{key, _} | _] = keyword) when is_atom(key), do: keyword |> Map.new() |> plain()
  def plain(list) when is_list(list), do: Enum.map(list, &plain/1)
  def plain(value) when value in [nil, true, false, :infinity, :neg_infinity, :nan], do: value
  def plain(atom) when is_atom(atom), do: Atom.to_string(atom)
  def plain(value), do: value

  defp key(key) when is_atom(key) and key not in [nil, true, false], do: Atom.to_string(key)
  defp key(key), do: key
end
