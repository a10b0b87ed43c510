defmodule VLLM.Error do
  @moduledoc """
  Every failure, raised by the functions with a bang and returned by those without.

  Match on `code`: `:deadline_exceeded`, `:worker_lost`, `:invalid_request`, … It is an atom for the
  codes of the protocol and text for those of a newer pool. `retryable` says whether the same call
  may succeed when it is made again, `details` holds what belongs to the code.
  """

  @codes ~w(connect_failed pool_lost pool_closed protocol_error invalid_request permission_denied
    not_allowed overloaded session_lost quota_exceeded unavailable deadline_exceeded cancelled startup_failed kv_cache_too_small
    gpu_memory_utilization cuda_out_of_memory poison_request worker_lost engine_dead engine_error)a
         |> Map.new(&{Atom.to_string(&1), &1})

  defexception [:code, :message, retryable: false, phase: "", worker: "", attempt: 0, details: %{}]

  @type t :: %__MODULE__{
          code: atom | String.t(),
          message: String.t(),
          retryable: boolean,
          phase: String.t(),
          worker: String.t(),
          attempt: non_neg_integer,
          details: map
        }

  @doc "The codes of the protocol: text → atom."
  def codes, do: @codes

  @doc "Build the error that the fields of an ERROR message and its details describe."
  def from_wire(fields, details) do
    %__MODULE__{
      code: Map.get(@codes, fields.code, fields.code),
      message: fields.message,
      retryable: fields.retryable,
      phase: fields.phase,
      worker: fields.worker,
      attempt: fields.attempt,
      details: if(is_map(details), do: details, else: %{})
    }
  end

  @doc "The refusal of an argument, by name."
  def invalid(parameter, value, message) do
    details = %{"parameter" => to_string(parameter), "value" => inspect(value)}
    %__MODULE__{code: :invalid_request, message: message, details: details}
  end

  @impl true
  def message(%{code: code, message: message}), do: "#{code}: #{message}"
end
