defmodule VLLM.Msgpack do
  @moduledoc """
  Values ↔ bytes: msgpack, with the extension types of `bridge/PROTOCOL.md`, section 4.

  Atoms travel as symbols, tuples as tuples, MapSets as sets, dates and times as such. `:infinity`,
  `:neg_infinity` and `:nan` are the floats that Elixir lacks. Text is a binary of UTF-8; other
  binaries travel as binary data. What arrives as binary data is a binary.
  """

  alias VLLM.{Array, Bytes, Complex, Duration, Ref, Symbol}

  @max_payload 16_777_216
  @max_depth 16
  @max_bigint 1024
  @max_buffers 64
  @buffer_threshold 4096

  @doc "Turn a value into `{payload, buffers}`. Raises VLLM.Error where it cannot travel."
  def pack!(value) do
    {data, buffers} = pack(value, {[], 0})
    payload = IO.iodata_to_binary(data)

    if byte_size(payload) > @max_payload,
      do:
        refuse(
          value,
          "the arguments take #{byte_size(payload)} bytes, the limit is #{@max_payload}"
        )

    {payload, buffers |> elem(0) |> Enum.reverse()}
  end

  @doc "Turn a payload and its buffers back into the value: `{:ok, value}` or `{:error, reason}`."
  def unpack(payload, buffers \\ []) when is_binary(payload) do
    case read(payload, {buffers, 0}) do
      {value, ""} -> {:ok, value}
      {_, rest} -> {:error, "#{byte_size(rest)} bytes more than one value"}
    end
  catch
    {:bad, reason} -> {:error, reason}
  end

  # Writing. The state holds the buffers so far, last first, and the depth of extension types.

  defp pack(nil, state), do: {<<0xC0>>, state}
  defp pack(false, state), do: {<<0xC2>>, state}
  defp pack(true, state), do: {<<0xC3>>, state}
  defp pack(:infinity, state), do: {<<0xCB, 0x7FF0000000000000::64>>, state}
  defp pack(:neg_infinity, state), do: {<<0xCB, 0xFFF0000000000000::64>>, state}
  defp pack(:nan, state), do: {<<0xCB, 0x7FF8000000000000::64>>, state}
  defp pack(atom, state) when is_atom(atom), do: {ext(4, Atom.to_string(atom)), state}
  defp pack(float, state) when is_float(float), do: {<<0xCB, float::float-64>>, state}
  defp pack(integer, state) when is_integer(integer), do: {integer(integer), state}

  defp pack(binary, state) when is_binary(binary) do
    {if(String.valid?(binary), do: text(binary), else: bin(binary)), state}
  end

  defp pack(list, state) when is_list(list) do
    {items, state} = Enum.map_reduce(list, state, &pack/2)
    {[head(length(list), 0x90, 15, 0xDC), items], state}
  end

  defp pack(tuple, state) when is_tuple(tuple), do: nested(1, Tuple.to_list(tuple), state)
  defp pack(%MapSet{} = set, state), do: nested(2, MapSet.to_list(set), state)
  defp pack(%Bytes{data: data}, state), do: {bin(data), state}
  defp pack(%Symbol{name: name}, state), do: {ext(4, name), state}
  defp pack(%NaiveDateTime{} = at, state), do: {ext(5, NaiveDateTime.to_iso8601(at)), state}

  defp pack(%DateTime{} = at, state) do
    {ext(5, at |> DateTime.to_iso8601() |> String.replace_suffix("Z", "+00:00")), state}
  end

  defp pack(%Date{} = day, state), do: {ext(6, Date.to_iso8601(day)), state}
  defp pack(%Time{} = time, state), do: {ext(7, Time.to_iso8601(time)), state}

  defp pack(%Duration{} = span, state) do
    body =
      <<span.days::little-signed-64, span.seconds::little-signed-32,
        span.microseconds::little-signed-32>>

    {ext(8, body), state}
  end

  defp pack(%Complex{real: real, imaginary: imaginary}, state) do
    {ext(9, <<real::little-float-64, imaginary::little-float-64>>), state}
  end

  defp pack(%Array{} = array, {buffers, depth} = state) do
    unless Array.valid?(array),
      do: refuse(array, "the bytes of an array must fit its type and shape")

    count = length(buffers)

    if byte_size(array.data) >= @buffer_threshold and count < @max_buffers do
      {body, _} = pack([array.dtype, array.shape, count], state)
      {ext(12, body), {[array.data | buffers], depth}}
    else
      {body, _} = pack([array.dtype, array.shape, %Bytes{data: array.data}], state)
      {ext(11, body), state}
    end
  end

  defp pack(%Ref{} = ref, state) do
    {body, _} = pack([ref.session, ref.worker, ref.number, ref.type], {[], 0})
    {ext(13, body), state}
  end

  defp pack(%module{} = value, _), do: refuse(value, "#{inspect(module)} has no form on the wire")

  defp pack(map, state) when is_map(map) do
    {entries, state} =
      Enum.map_reduce(map, state, fn {key, item}, state ->
        {key, state} = pack(key, state)
        {item, state} = pack(item, state)
        {[key, item], state}
      end)

    {[head(map_size(map), 0x80, 15, 0xDE), entries], state}
  end

  defp pack(value, _), do: refuse(value, "#{inspect(value)} has no form on the wire")

  defp nested(_, value, {_, depth}) when depth >= @max_depth,
    do: refuse(value, "nested more than #{@max_depth} levels deep")

  defp nested(code, list, {buffers, depth}) do
    {body, {buffers, _}} = pack(list, {buffers, depth + 1})
    {ext(code, body), {buffers, depth}}
  end

  defp integer(n) when n in 0..127, do: <<n>>
  defp integer(n) when n in -32..-1, do: <<n::signed-8>>
  defp integer(n) when n in 0..0xFF, do: <<0xCC, n>>
  defp integer(n) when n in 0..0xFFFF, do: <<0xCD, n::16>>
  defp integer(n) when n in 0..0xFFFFFFFF, do: <<0xCE, n::32>>
  defp integer(n) when n in 0..0xFFFFFFFFFFFFFFFF, do: <<0xCF, n::64>>
  defp integer(n) when n in -0x80..-1, do: <<0xD0, n::signed-8>>
  defp integer(n) when n in -0x8000..-1, do: <<0xD1, n::signed-16>>
  defp integer(n) when n in -0x80000000..-1, do: <<0xD2, n::signed-32>>
  defp integer(n) when n in -0x8000000000000000..-1, do: <<0xD3, n::signed-64>>

  defp integer(n) do
    size = signed_size(n, 9)
    if size > @max_bigint, do: refuse(n, "integer of #{size} bytes, the limit is #{@max_bigint}")
    ext(10, <<n::signed-size(size)-unit(8)>>)
  end

  defp signed_size(n, size) do
    <<back::signed-size(size)-unit(8)>> = <<n::signed-size(size)-unit(8)>>
    if back == n, do: size, else: signed_size(n, size + 1)
  end

  defp text(text) when byte_size(text) < 32, do: [0xA0 + byte_size(text), text]
  defp text(text), do: [sized(byte_size(text), 0xD9), text]
  defp bin(data), do: [sized(byte_size(data), 0xC4), data]

  defp sized(size, first) when size <= 0xFF, do: <<first, size>>
  defp sized(size, first) when size <= 0xFFFF, do: <<first + 1, size::16>>
  defp sized(size, first), do: <<first + 2, size::32>>

  defp head(count, fix, last, _) when count <= last, do: <<fix + count>>
  defp head(count, _, _, first) when count <= 0xFFFF, do: <<first, count::16>>
  defp head(count, _, _, first), do: <<first + 1, count::32>>

  defp ext(code, body) do
    body = IO.iodata_to_binary(body)

    case byte_size(body) do
      1 -> [0xD4, code, body]
      2 -> [0xD5, code, body]
      4 -> [0xD6, code, body]
      8 -> [0xD7, code, body]
      16 -> [0xD8, code, body]
      size -> [sized(size, 0xC7), code, body]
    end
  end

  defp refuse(value, message), do: raise(VLLM.Error.invalid("", value, message))

  # Reading. The state holds the buffers and the depth of extension types.

  defp read(<<n::8, rest::binary>>, _) when n <= 0x7F, do: {n, rest}
  defp read(<<0x8::4, n::4, rest::binary>>, state), do: read_map(n, rest, state, [])
  defp read(<<0x9::4, n::4, rest::binary>>, state), do: read_list(n, rest, state, [])
  defp read(<<0b101::3, n::5, text::binary-size(n), rest::binary>>, _), do: {utf8(text), rest}
  defp read(<<0xC0, rest::binary>>, _), do: {nil, rest}
  defp read(<<0xC2, rest::binary>>, _), do: {false, rest}
  defp read(<<0xC3, rest::binary>>, _), do: {true, rest}
  defp read(<<0xC4, n::8, data::binary-size(n), rest::binary>>, _), do: {data, rest}
  defp read(<<0xC5, n::16, data::binary-size(n), rest::binary>>, _), do: {data, rest}
  defp read(<<0xC6, n::32, data::binary-size(n), rest::binary>>, _), do: {data, rest}

  defp read(<<0xC7, n::8, code::signed-8, body::binary-size(n), rest::binary>>, state),
    do: {read_ext(code, body, state), rest}

  defp read(<<0xC8, n::16, code::signed-8, body::binary-size(n), rest::binary>>, state),
    do: {read_ext(code, body, state), rest}

  defp read(<<0xC9, n::32, code::signed-8, body::binary-size(n), rest::binary>>, state),
    do: {read_ext(code, body, state), rest}

  defp read(<<0xCA, float::float-32, rest::binary>>, _), do: {float, rest}
  defp read(<<0xCB, float::float-64, rest::binary>>, _), do: {float, rest}
  defp read(<<0xCA, 0::1, 0xFF::8, 0::23, rest::binary>>, _), do: {:infinity, rest}
  defp read(<<0xCA, 1::1, 0xFF::8, 0::23, rest::binary>>, _), do: {:neg_infinity, rest}
  defp read(<<0xCA, _::32, rest::binary>>, _), do: {:nan, rest}
  defp read(<<0xCB, 0x7FF0000000000000::64, rest::binary>>, _), do: {:infinity, rest}
  defp read(<<0xCB, 0xFFF0000000000000::64, rest::binary>>, _), do: {:neg_infinity, rest}
  defp read(<<0xCB, _::64, rest::binary>>, _), do: {:nan, rest}
  defp read(<<0xCC, n::8, rest::binary>>, _), do: {n, rest}
  defp read(<<0xCD, n::16, rest::binary>>, _), do: {n, rest}
  defp read(<<0xCE, n::32, rest::binary>>, _), do: {n, rest}
  defp read(<<0xCF, n::64, rest::binary>>, _), do: {n, rest}
  defp read(<<0xD0, n::signed-8, rest::binary>>, _), do: {n, rest}
  defp read(<<0xD1, n::signed-16, rest::binary>>, _), do: {n, rest}
  defp read(<<0xD2, n::signed-32, rest::binary>>, _), do: {n, rest}
  defp read(<<0xD3, n::signed-64, rest::binary>>, _), do: {n, rest}

  defp read(<<first, code::signed-8, rest::binary>>, state) when first in 0xD4..0xD8 do
    size = Bitwise.bsl(1, first - 0xD4)

    case rest do
      <<body::binary-size(size), rest::binary>> -> {read_ext(code, body, state), rest}
      _ -> bad("a value that ends too early")
    end
  end

  defp read(<<0xD9, n::8, text::binary-size(n), rest::binary>>, _), do: {utf8(text), rest}
  defp read(<<0xDA, n::16, text::binary-size(n), rest::binary>>, _), do: {utf8(text), rest}
  defp read(<<0xDB, n::32, text::binary-size(n), rest::binary>>, _), do: {utf8(text), rest}
  defp read(<<0xDC, n::16, rest::binary>>, state), do: read_list(n, rest, state, [])
  defp read(<<0xDD, n::32, rest::binary>>, state), do: read_list(n, rest, state, [])
  defp read(<<0xDE, n::16, rest::binary>>, state), do: read_map(n, rest, state, [])
  defp read(<<0xDF, n::32, rest::binary>>, state), do: read_map(n, rest, state, [])
  defp read(<<0b111::3, n::5, rest::binary>>, _), do: {n - 32, rest}
  defp read(_, _), do: bad("no value, or one that ends too early")

  defp read_list(0, rest, _, items), do: {Enum.reverse(items), rest}

  defp read_list(n, rest, state, items) do
    {item, rest} = read(rest, state)
    read_list(n - 1, rest, state, [item | items])
  end

  defp read_map(0, rest, _, entries), do: {Map.new(entries), rest}

  defp read_map(n, rest, state, entries) do
    {key, rest} = read(rest, state)
    {item, rest} = read(rest, state)
    read_map(n - 1, rest, state, [{key, item} | entries])
  end

  defp read_ext(1, body, state), do: List.to_tuple(elements(body, state))
  defp read_ext(code, body, state) when code in [2, 3], do: MapSet.new(elements(body, state))

  defp read_ext(4, body, _) do
    name = utf8(body)
    String.to_existing_atom(name)
  rescue
    ArgumentError -> %Symbol{name: body}
  end

  defp read_ext(5, body, _) do
    case DateTime.from_iso8601(body) do
      {:ok, at, _} -> at
      {:error, :missing_offset} -> iso(NaiveDateTime.from_iso8601(body))
      {:error, reason} -> bad("datetime: #{reason}")
    end
  end

  defp read_ext(6, body, _), do: iso(Date.from_iso8601(body))
  defp read_ext(7, body, _), do: iso(Time.from_iso8601(body))

  defp read_ext(8, <<days::little-signed-64, seconds::little-signed-32, us::little-signed-32>>, _),
    do: %Duration{days: days, seconds: seconds, microseconds: us}

  defp read_ext(9, <<real::little-float-64, imaginary::little-float-64>>, _),
    do: %Complex{real: real, imaginary: imaginary}

  defp read_ext(10, body, _) when byte_size(body) in 1..@max_bigint do
    size = byte_size(body)
    <<n::signed-size(size)-unit(8)>> = body
    n
  end

  defp read_ext(11, body, state) do
    case read_all(body, state) do
      [dtype, shape, data] -> array(dtype, shape, body_is_binary(body, data))
      _ -> bad("an array is [type, shape, data]")
    end
  end

  defp read_ext(12, body, {buffers, _} = state) do
    with [dtype, shape, position] when is_integer(position) and position >= 0 <-
           read_all(body, state),
         data when is_binary(data) <- Enum.at(buffers, position) do
      array(dtype, shape, data)
    else
      _ -> bad("a buffer that is not there")
    end
  end

  defp read_ext(13, body, state) do
    case read_all(body, state) do
      [session, worker, number, type]
      when is_binary(session) and is_binary(worker) and is_binary(type) and is_integer(number) and
             number > 0 ->
        %Ref{session: session, worker: worker, number: number, type: type}

      _ ->
        bad("a ref is [session, worker, number, type]")
    end
  end

  defp read_ext(-1, <<seconds::32>>, _), do: DateTime.from_unix!(seconds)

  defp read_ext(-1, <<nanoseconds::30, seconds::34>>, _), do: moment(seconds, nanoseconds)
  defp read_ext(-1, <<nanoseconds::32, seconds::signed-64>>, _), do: moment(seconds, nanoseconds)
  defp read_ext(code, _, _), do: bad("extension type #{code}, or the body of one")

  defp moment(seconds, 0), do: DateTime.from_unix!(seconds)

  defp moment(seconds, nanoseconds) do
    DateTime.from_unix!(seconds * 1_000_000 + div(nanoseconds, 1000), :microsecond)
  end

  defp array(dtype, shape, data) do
    array = %Array{dtype: dtype, shape: shape, data: data}
    if Array.valid?(array), do: array, else: bad("an array whose bytes do not fit")
  end

  # Text and binary data are both binaries here: what was meant is the byte before the data.
  defp body_is_binary(body, data) when is_binary(data) do
    before = binary_part(body, 0, byte_size(body) - byte_size(data))
    size = byte_size(data)

    if Enum.any?(
         [<<0xC4, size>>, <<0xC5, size::16>>, <<0xC6, size::32>>],
         &String.ends_with?(before, &1)
       ),
       do: data,
       else: bad("the data of an array is binary")
  end

  defp body_is_binary(_, _), do: bad("the data of an array is binary")

  defp elements(body, state) do
    case read_all(body, state) do
      list when is_list(list) -> list
      _ -> bad("the body of a tuple or set is an array")
    end
  end

  defp read_all(_, {_, depth}) when depth >= @max_depth, do: bad("nested too deeply")

  defp read_all(body, {buffers, depth}) do
    case read(body, {buffers, depth + 1}) do
      {value, ""} -> value
      _ -> bad("more than one value in the body of an extension type")
    end
  end

  defp utf8(text), do: if(String.valid?(text), do: text, else: bad("text that is no UTF-8"))
  defp iso({:ok, value}), do: value
  defp iso({:error, reason}), do: bad("date or time: #{reason}")
  defp bad(reason), do: throw({:bad, reason})
end
