defmodule VLLM.Vectors do
  @moduledoc "Reads the conformance vectors. Elixir 1.14 has no JSON of its own."

  alias VLLM.{Array, Bytes, Complex, Duration, Ref, Symbol}

  def read(file, group) do
    path = Path.expand("../../../../bridge/vectors/#{file}.json", __DIR__)
    {value, _} = path |> File.read!() |> String.trim_leading() |> json()
    value[group]
  end

  def bytes(hex), do: Base.decode16!(hex, case: :lower)

  @doc "The value that a tagged one means."
  def value(["nil"]), do: nil
  def value(["bool", value]), do: value
  def value(["int", digits]), do: String.to_integer(digits)
  def value(["float", "7ff0000000000000"]), do: :infinity
  def value(["float", "fff0000000000000"]), do: :neg_infinity
  def value(["float", "7ff8000000000000"]), do: :nan
  def value(["float", hex]), do: real(hex)
  def value(["text", text]), do: text
  def value(["binary", hex]), do: %Bytes{data: bytes(hex)}
  def value(["symbol", name]), do: symbol(name)
  def value(["array", items]), do: Enum.map(items, &value/1)
  def value(["tuple", items]), do: items |> Enum.map(&value/1) |> List.to_tuple()
  def value([set, items]) when set in ["set", "frozenset"], do: MapSet.new(items, &value/1)
  def value(["map", pairs]), do: Map.new(pairs, fn [key, item] -> {value(key), value(item)} end)
  def value(["date", text]), do: Date.from_iso8601!(text)
  def value(["time", text]), do: Time.from_iso8601!(text)
  def value(["timedelta", [d, s, u]]), do: %Duration{days: d, seconds: s, microseconds: u}
  def value(["complex", [re, im]]), do: %Complex{real: real(re), imaginary: real(im)}

  def value(["ndarray", dtype, shape, hex]),
    do: %Array{dtype: dtype, shape: shape, data: bytes(hex)}

  def value(["ref", [session, worker, number, type]]),
    do: %Ref{session: session, worker: worker, number: String.to_integer(number), type: type}

  def value(["datetime", text]) do
    case DateTime.from_iso8601(text) do
      {:ok, at, _} -> at
      {:error, :missing_offset} -> NaiveDateTime.from_iso8601!(text)
    end
  end

  @doc "The same value as it is read: binary data is a binary."
  def as_read(%Bytes{data: data}), do: data
  def as_read(other), do: other

  defp real(hex) do
    <<float::float-64>> = bytes(hex)
    float
  end

  defp symbol(name) do
    String.to_existing_atom(name)
  rescue
    ArgumentError -> %Symbol{name: name}
  end

  # JSON, as much of it as Python's json.dumps writes.

  defp json("{" <> rest), do: members(skip(rest), %{})
  defp json("[" <> rest), do: elements(skip(rest), [])
  defp json("\"" <> rest), do: text(rest, [])
  defp json("true" <> rest), do: {true, rest}
  defp json("false" <> rest), do: {false, rest}
  defp json("null" <> rest), do: {nil, rest}

  defp json(number) do
    [digits] = Regex.run(~r/^-?\d+/, number)

    {String.to_integer(digits),
     binary_part(number, byte_size(digits), byte_size(number) - byte_size(digits))}
  end

  defp members("}" <> rest, map), do: {map, rest}
  defp members("," <> rest, map), do: members(skip(rest), map)

  defp members(rest, map) do
    {key, rest} = json(rest)
    ":" <> rest = skip(rest)
    {value, rest} = json(skip(rest))
    members(skip(rest), Map.put(map, key, value))
  end

  defp elements("]" <> rest, items), do: {Enum.reverse(items), rest}
  defp elements("," <> rest, items), do: elements(skip(rest), items)

  defp elements(rest, items) do
    {item, rest} = json(rest)
    elements(skip(rest), [item | items])
  end

  defp text("\"" <> rest, parts), do: {parts |> Enum.reverse() |> IO.iodata_to_binary(), rest}

  defp text("\\u" <> <<hex::binary-size(4), rest::binary>>, parts),
    do: text(rest, [<<String.to_integer(hex, 16)::utf8>> | parts])

  defp text("\\n" <> rest, parts), do: text(rest, ["\n" | parts])
  defp text(<<"\\", char::utf8, rest::binary>>, parts), do: text(rest, [<<char::utf8>> | parts])

  defp text(rest, parts) do
    [plain] = Regex.run(~r/^[^"\\]+/, rest)
    text(binary_part(rest, byte_size(plain), byte_size(rest) - byte_size(plain)), [plain | parts])
  end

  defp skip(text), do: String.trim_leading(text)
end
