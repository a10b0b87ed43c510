# What calls return: vLLM's names and shapes, as structs. Reading a field is a local read.

defmodule VLLM.Logprob do
  @moduledoc "Log-probability of one token, its rank in the vocabulary from 1, and its text."
  defstruct [:logprob, :rank, :decoded_token]
end

defmodule VLLM.CompletionOutput do
  @moduledoc "One generated sequence; from a stream, what one step added to it."
  defstruct [
    :index,
    :text,
    :token_ids,
    :cumulative_logprob,
    :logprobs,
    :finish_reason,
    :stop_reason
  ]

  @doc false
  def from_wire(map) do
    %__MODULE__{
      index: map["index"],
      text: map["text"],
      token_ids: map["token_ids"],
      cumulative_logprob: map["cumulative_logprob"],
      logprobs: VLLM.RequestOutput.logprobs(map["logprobs"]),
      finish_reason: map["finish_reason"],
      stop_reason: map["stop_reason"]
    }
  end
end

defmodule VLLM.RequestOutput do
  @moduledoc "The result of one prompt."
  defstruct [
    :request_id,
    :prompt,
    :prompt_token_ids,
    :prompt_logprobs,
    :num_cached_tokens,
    :finished,
    outputs: [],
    usage: %{},
    notes: []
  ]

  @doc false
  def from_wire(map) do
    %__MODULE__{
      request_id: map["request_id"],
      prompt: map["prompt"],
      prompt_token_ids: map["prompt_token_ids"],
      prompt_logprobs: logprobs(map["prompt_logprobs"]),
      num_cached_tokens: map["num_cached_tokens"],
      finished: map["finished"],
      outputs: Enum.map(map["outputs"] || [], &VLLM.CompletionOutput.from_wire/1),
      usage: map["usage"] || %{},
      notes: map["notes"] || []
    }
  end

  @doc false
  def logprobs(nil), do: nil

  def logprobs(rows) do
    for row <- rows do
      row &&
        Map.new(row, fn {token, entry} ->
          {token,
           %VLLM.Logprob{
             logprob: entry["logprob"],
             rank: entry["rank"],
             decoded_token: entry["decoded_token"]
           }}
        end)
    end
  end
end

defmodule VLLM.PoolingOutput do
  @moduledoc "The result of `embed` or `encode`: `outputs` is what the pool answered for the prompt."
  defstruct [:request_id, :prompt_token_ids, :num_cached_tokens, :finished, :outputs, usage: %{}]

  @doc false
  def from_wire(map) do
    %__MODULE__{
      request_id: map["request_id"],
      prompt_token_ids: map["prompt_token_ids"],
      num_cached_tokens: map["num_cached_tokens"],
      finished: map["finished"],
      outputs: map["outputs"],
      usage: map["usage"] || %{}
    }
  end
end
