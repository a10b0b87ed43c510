defmodule VLLM.VectorsTest do
  @moduledoc "The conformance vectors, replayed."
  use ExUnit.Case, async: true

  alias VLLM.{Msgpack, Vectors, Wire}

  # Elixir has one type for sets, keeps times in UTC, and its maps have an order of their own.
  @other_bytes ["frozenset", "datetime with an offset"]

  defp frames(vector), do: Enum.map(vector["frames"], &Vectors.bytes/1)
  defp kind(vector), do: vector["kind"] |> String.downcase() |> String.to_atom()
  defp fields(vector), do: Map.new(vector["fields"], fn {k, v} -> {String.to_atom(k), v} end)
  defp ours(vectors), do: Enum.filter(vectors, &(kind(&1) in Wire.kinds()))

  test "values have their bytes, and the bytes their values" do
    for vector <- Vectors.read("values", "same") do
      value = Vectors.value(vector["value"])
      payload = Vectors.bytes(vector["payload"])
      buffers = Enum.map(vector["buffers"] || [], &Vectors.bytes/1)
      assert {:ok, read} = Msgpack.unpack(payload, buffers)
      assert read === Vectors.as_read(value), vector["name"]
      {packed, own} = Msgpack.pack!(value)
      assert Msgpack.unpack(packed, own) == {:ok, Vectors.as_read(value)}, vector["name"]

      unless vector["name"] in @other_bytes,
        do: assert({packed, own} == {payload, buffers}, vector["name"])
    end
  end

  test "other forms of values are read as well" do
    for vector <- Vectors.read("values", "read") do
      assert Msgpack.unpack(Vectors.bytes(vector["payload"])) |> same_moment() ==
               {:ok, Vectors.value(vector["value"])} |> same_moment(),
             vector["name"]
    end
  end

  # A fraction is as precise as it was written.
  defp same_moment({:ok, %DateTime{} = at}), do: DateTime.to_unix(at, :microsecond)
  defp same_moment(other), do: other

  test "what is no value is refused" do
    for vector <- Vectors.read("values", "refused") do
      assert {:error, _} = Msgpack.unpack(Vectors.bytes(vector["payload"])), vector["name"]
    end
  end

  test "messages have their frames, and the frames their messages" do
    for vector <- ours(Vectors.read("messages", "same")) do
      value = Vectors.value(vector["payload"])
      assert {:ok, message, payload, buffers} = Wire.decode(frames(vector))
      assert message == {kind(vector), fields(vector)}, vector["name"]
      assert Msgpack.unpack(payload, buffers) == {:ok, value}
      assert Wire.encode(message, Msgpack.pack!(value)) == frames(vector), vector["name"]
    end
  end

  test "shorter and longer headers are read as well" do
    for vector <- Vectors.read("messages", "read") do
      assert Wire.decode_header(Vectors.bytes(vector["header"])) ==
               {:ok, {kind(vector), fields(vector)}}
    end
  end

  test "what is no header is refused" do
    for vector <- Vectors.read("messages", "refused") do
      assert {:error, _} = Wire.decode_header(Vectors.bytes(vector["header"])), vector["name"]
    end
  end

  test "every code is an atom of its own, and errors arrive with all their parts" do
    codes = for vector <- Vectors.read("errors", "codes"), do: vector["code"]
    assert Enum.sort(codes) -- Map.keys(VLLM.Error.codes()) == []

    for vector <- Vectors.read("errors", "messages") do
      {:ok, {:error, fields}, payload, buffers} = Wire.decode(frames(vector))
      {:ok, details} = Msgpack.unpack(payload, buffers)
      error = VLLM.Error.from_wire(fields, details)
      assert to_string(error.code) == vector["code"]
      assert is_atom(error.code) == vector["code"] in codes
      parts = Map.take(fields(vector), [:message, :retryable, :phase, :worker, :attempt])
      assert Map.take(error, Map.keys(parts)) == parts
      assert error.details == Vectors.value(vector["payload"])
    end
  end

  test "packets hold their frames" do
    for vector <- Vectors.read("packets", "same") do
      <<size::32, body::binary>> = Vectors.bytes(vector["packet"])
      assert size == byte_size(body)
      assert Wire.frames(body) == {:ok, frames(vector)}
      assert IO.iodata_to_binary(Wire.packet(frames(vector))) == body
    end

    for vector <- Vectors.read("packets", "refused"),
        <<size::32, body::binary-size(size)>> <- [Vectors.bytes(vector["bytes"])] do
      assert {:error, _} = Wire.frames(body), vector["name"]
    end
  end

  test "conversations end their calls as they say" do
    for vector <- Vectors.read("sequences", "sequences") do
      calls = Enum.reduce(vector["messages"], %{}, &play/2)
      assert Map.keys(calls) == Enum.map(vector["calls"], & &1["id"])

      for expected <- vector["calls"] do
        call = calls[expected["id"]]
        assert call[:error] == expected["error"]
        if expected["result"], do: assert(call.result == Vectors.value(expected["result"]))
        if call.items, do: assert(call.items == Enum.map(expected["items"], &Vectors.value/1))
      end
    end
  end

  # Take a message as the rules of the protocol tell a client to.
  defp play(vector, calls) do
    {:ok, {kind, fields}, payload, buffers} = Wire.decode(frames(vector))
    {:ok, value} = Msgpack.unpack(payload, buffers)

    case kind do
      :call ->
        Map.put(calls, fields.id, %{items: []})

      :cancel ->
        put_in(calls[fields.id].items, nil)

      :result ->
        finish(calls, fields.id, :result, value)

      :error ->
        finish(calls, fields.id, :error, fields.code)

      :bye ->
        Enum.reduce(Map.keys(calls), calls, &finish(&2, &1, :error, "pool_lost"))

      :items ->
        fields.entries |> Enum.zip(value) |> Enum.reduce(calls, &add_item/2)

      :end ->
        fields.entries
        |> Enum.zip(value)
        |> Enum.reduce(calls, fn {[id, _], v}, c -> finish(c, id, :result, v) end)

      _ ->
        calls
    end
  end

  defp add_item({[id, _], value}, calls) do
    case calls do
      %{^id => %{items: items}} when is_list(items) -> put_in(calls[id].items, items ++ [value])
      _ -> calls
    end
  end

  defp finish(calls, id, how, what) do
    case calls do
      %{^id => call} when not is_map_key(call, :result) and not is_map_key(call, :error) ->
        Map.put(calls, id, Map.put(call, how, what))

      _ ->
        calls
    end
  end
end
