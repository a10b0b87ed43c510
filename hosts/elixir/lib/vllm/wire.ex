defmodule VLLM.Wire do
  @moduledoc """
  The messages of the protocol and their packets: `bridge/PROTOCOL.md`, sections 2 and 15.

  Pure. A message is `{kind, fields}` with atoms for names; its payload is a value.
  """

  alias VLLM.Msgpack

  @max_name 1024
  @max_text 32_768
  @max_header 262_144
  @max_timeout_ms 2_000_000_000

  # Kind: code, fields in their order; a field is name, type and, unless required, its default.
  @kinds [
    hello: {1, versions: :ints, product: :name, pid: {:int, 0}, name: {:name, ""}},
    welcome: {2, version: :int, product: :name, epoch: :name, pid: :int},
    call:
      {10,
       id: :call_id,
       model: :name,
       verb: :name,
       remaining_ms: :budget,
       window: {:window, 0},
       priority: {:int, 0},
       request_id: {:name, ""},
       client: {:int, 0},
       attempt: {:int, 0},
       retry: {:name, ""},
       session: {:name, ""},
       affinity: {:name, ""},
       ttl_ms: {:window, 0}},
    cancel: {11, id: :int, client: {:int, 0}},
    credit: {12, id: :int, room: :int, client: {:int, 0}},
    result: {13, id: :int, client: {:int, 0}, worker: {:name, ""}, attempt: {:int, 0}},
    items: {14, entries: :pairs, client: {:int, 0}},
    end: {15, entries: :pairs, client: {:int, 0}, worker: {:name, ""}},
    error:
      {16,
       id: :int,
       code: :name,
       message: :text,
       retryable: {:bool, false},
       phase: {:name, ""},
       worker: {:name, ""},
       attempt: {:int, 0},
       client: {:int, 0}},
    ping: {20, token: :int},
    pong: {21, token: :int},
    bye: {22, reason: {:name, ""}}
  ]
  @codes Map.new(@kinds, fn {kind, {code, _}} -> {code, kind} end)

  @doc "The kinds that a client sends or gets, as atoms."
  def kinds, do: Keyword.keys(@kinds)

  @doc "Turn a message and its packed payload into frames."
  def encode({kind, fields}, {payload, buffers} \\ {<<0xC0>>, []}) do
    {code, schema} = Keyword.fetch!(@kinds, kind)

    values =
      Enum.map(schema, fn
        {name, {_, default}} -> Map.get(fields, name, default)
        {name, _} -> Map.fetch!(fields, name)
      end)

    {header, []} = Msgpack.pack!([code | values])
    [header, payload | buffers]
  end

  @doc "Turn frames into `{:ok, {kind, fields}, payload, buffers}` or `{:error, reason}`."
  def decode([header, payload | buffers]) do
    with {:ok, message} <- decode_header(header), do: {:ok, message, payload, buffers}
  end

  def decode(_), do: {:error, "a message has two frames or more"}

  @doc "Read a header, with defaults filled in: `{:ok, {kind, fields}}` or `{:error, reason}`."
  def decode_header(header) when byte_size(header) > @max_header, do: {:error, "header too large"}

  def decode_header(header) do
    with {:ok, [code | values]} when is_integer(code) <- Msgpack.unpack(header),
         {:ok, kind} <- Map.fetch(@codes, code),
         {_, schema} = @kinds[kind],
         {:ok, fields} <- fields(schema, values, %{}) do
      {:ok, {kind, fields}}
    else
      {:error, reason} -> {:error, reason}
      _ -> {:error, "a header is an array that begins with a known kind"}
    end
  end

  @doc "The frames in a packet whose own length was taken off: `{:ok, frames}` or `{:error, reason}`."
  def frames(packet) do
    frames = for <<size::32, frame::binary-size(size) <- packet>>, do: frame

    if length(frames) >= 2 and
         Enum.sum(Enum.map(frames, &(byte_size(&1) + 4))) == byte_size(packet),
       do: {:ok, frames},
       else: {:error, "frames that do not fill their packet"}
  end

  @doc "The packet of some frames, without its own length, which the port puts before it."
  def packet(frames), do: Enum.map(frames, &[<<byte_size(&1)::32>>, &1])

  @doc "Milliseconds of a budget on the wire."
  def budget(:infinity), do: nil
  def budget(ms), do: ms |> max(0) |> min(@max_timeout_ms)

  defp fields([], _, fields), do: {:ok, fields}

  defp fields([{name, {_, default}} | schema], [], fields),
    do: fields(schema, [], Map.put(fields, name, default))

  defp fields([{name, _} | _], [], _), do: {:error, "#{name} is missing"}

  defp fields([{name, type} | schema], [value | values], fields) do
    type = if is_tuple(type), do: elem(type, 0), else: type

    if valid?(type, value),
      do: fields(schema, values, Map.put(fields, name, value)),
      else: {:error, "#{name} cannot be #{inspect(value, limit: 3, printable_limit: 80)}"}
  end

  defp valid?(:int, value),
    do: is_integer(value) and value in -0x8000000000000000..0x7FFFFFFFFFFFFFFF

  defp valid?(:call_id, value), do: valid?(:int, value) and value > 0
  defp valid?(:window, value), do: valid?(:int, value) and value >= 0

  defp valid?(:budget, value),
    do: value == nil or (is_integer(value) and value in 0..@max_timeout_ms)

  defp valid?(:bool, value), do: is_boolean(value)
  defp valid?(:name, value), do: is_binary(value) and String.length(value) <= @max_name
  defp valid?(:text, value), do: is_binary(value) and String.length(value) <= @max_text
  defp valid?(:ints, value), do: is_list(value) and Enum.all?(value, &valid?(:int, &1))

  defp valid?(:pairs, value),
    do: is_list(value) and Enum.all?(value, &(valid?(:ints, &1) and length(&1) == 2))
end
