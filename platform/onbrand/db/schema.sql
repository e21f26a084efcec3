CREATE SCHEMA app;

ALTER SCHEMA app OWNER TO onbrand_owner;

CREATE SCHEMA audit;

ALTER SCHEMA audit OWNER TO onbrand_owner;

CREATE SCHEMA identity;

ALTER SCHEMA identity OWNER TO onbrand_identity;

CREATE SCHEMA private;

ALTER SCHEMA private OWNER TO onbrand_owner;

CREATE SCHEMA storage;

ALTER SCHEMA storage OWNER TO onbrand_owner;

CREATE PROCEDURE app.build_wall(IN t regclass)
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy wall_user on %s as restrictive for all to authenticated '
    'using (brand_id = any ((select private.my_brands())::text[])) '
    'with check (brand_id = any ((select private.my_brands())::text[]))', t);
  execute format('create policy wall_system on %s as restrictive for all to brand_system '
    'using (brand_id = (select private.ctx(''brand_id''))) '
    'with check (brand_id = (select private.ctx(''brand_id'')))', t);
  execute format('create trigger brand_immutable before update on %s '
    'for each row execute function app.tg_brand_immutable()', t);
end $$;

ALTER PROCEDURE app.build_wall(IN t regclass) OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_asset_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if exists (select 1 from app.job_assets ja join app.lora_training_jobs j
      on j.brand_id = ja.brand_id and j.id = ja.job_id
      where ja.brand_id = old.brand_id and ja.asset_id = old.id and j.status in ('pending', 'training')) then
    raise exception 'a training job that has not ended uses this asset' using errcode = 'OB004';
  end if;
  return old;
end $$;

ALTER FUNCTION app.tg_asset_guard() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_brand_immutable() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if new.brand_id is distinct from old.brand_id then
    raise exception 'brand_id is immutable' using errcode = '42501';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_brand_immutable() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_generation_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
begin
  if old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.status in ('completed', 'failed', 'canceled')
     and to_jsonb(new) - 'model_id' is distinct from to_jsonb(old) - 'model_id' then
    raise exception 'the generation has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_generation_guard() OWNER TO onbrand_owner;

CREATE FUNCTION app.tg_job_guard() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
declare may_change text[] := array['name', 'model_id', 'model_url'];
begin
  if old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at then
    raise exception 'a request to cancel stands' using errcode = 'OB003';
  end if;
  if old.model_id is not null and new.model_id is null then new.model_url := null; end if;
  if old.status not in ('completed', 'failed', 'canceled') then return new; end if;
  if to_jsonb(new) - may_change is distinct from to_jsonb(old) - may_change
     or (new.model_id is not null and new.model_id is distinct from old.model_id)
     or (new.model_url is not null and new.model_url is distinct from old.model_url) then
    raise exception 'the job has ended' using errcode = 'OB002';
  end if;
  return new;
end $$;

ALTER FUNCTION app.tg_job_guard() OWNER TO onbrand_owner;

CREATE FUNCTION private.acts_in(b text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select case current_setting('role', true)
    when 'authenticated' then b = any (private.my_brands())
    when 'brand_system' then b = private.ctx('brand_id')
    else false end
$$;

ALTER FUNCTION private.acts_in(b text) OWNER TO onbrand_definer;

CREATE FUNCTION private.audit_append(b text, act text, what text, d jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare p bytea; s bigint; t timestamptz := clock_timestamp();
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('audit:' || b, 0));
  select e.hash, e.seq into p, s from audit.events e where e.brand_id = b order by e.seq desc limit 1;
  s := coalesce(s, 0) + 1;
  insert into audit.events values (s, b, t, act, what, d, p, sha256(convert_to(concat_ws('|',
    s::text, b, extract(epoch from t)::text, act, what, d::text, encode(coalesce(p, ''::bytea), 'hex')), 'utf8')));
end $$;

ALTER FUNCTION private.audit_append(b text, act text, what text, d jsonb) OWNER TO onbrand_definer;

CREATE FUNCTION private.ctx(k text) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> k
$$;

ALTER FUNCTION private.ctx(k text) OWNER TO onbrand_definer;

CREATE FUNCTION private.find_login(email text) RETURNS TABLE(id uuid, password_hash text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.id, u.password_hash from identity.users u where u.email = lower(find_login.email)
$$;

ALTER FUNCTION private.find_login(email text) OWNER TO onbrand_identity;

CREATE FUNCTION private.find_user(b text, email text) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.id from identity.users u where u.email = lower(find_user.email) and b = any (private.my_admin_brands())
$$;

ALTER FUNCTION private.find_user(b text, email text) OWNER TO onbrand_identity;

CREATE FUNCTION private.me() RETURNS TABLE(id uuid, email text, created_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.id, u.email, u.created_at from identity.users u where u.id = private.uid()
$$;

ALTER FUNCTION private.me() OWNER TO onbrand_identity;

CREATE FUNCTION private.member_emails(b text) RETURNS TABLE(user_id uuid, email text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select u.id, u.email from identity.users u join app.brand_users bu on bu.user_id = u.id where bu.brand_id = b
$$;

ALTER FUNCTION private.member_emails(b text) OWNER TO onbrand_identity;

CREATE FUNCTION private.my_admin_brands() RETURNS text[]
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select coalesce(array_agg(bu.brand_id), '{}') from app.brand_users bu
  where bu.user_id = private.uid() and bu.role = 'admin'
    and (private.ctx('brand_id') is null or bu.brand_id = private.ctx('brand_id'))
$$;

ALTER FUNCTION private.my_admin_brands() OWNER TO onbrand_definer;

CREATE FUNCTION private.my_brands() RETURNS text[]
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select coalesce(array_agg(bu.brand_id), '{}') from app.brand_users bu
  where bu.user_id = private.uid()
    and (private.ctx('brand_id') is null or bu.brand_id = private.ctx('brand_id'))
$$;

ALTER FUNCTION private.my_brands() OWNER TO onbrand_definer;

CREATE FUNCTION private.next_number(b text, what text, n integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
declare taken bigint;
begin
  if not coalesce(private.acts_in(b), false) or n not between 1 and 500 then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  insert into app.numbers as c (brand_id, series, last) values (b, what, n)
  on conflict (brand_id, series) do update set last = c.last + excluded.last
  returning c.last into taken;
  return taken - n + 1;
end $$;

ALTER FUNCTION private.next_number(b text, what text, n integer) OWNER TO onbrand_definer;

CREATE FUNCTION private.queue() RETURNS TABLE(kind text, brand_id text, job_id uuid, user_id uuid, status text, provider text, provider_job_id text, attempts integer, cancel_requested boolean, heartbeat_at timestamp with time zone, created_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select 'training', j.brand_id, j.id, j.user_id, j.status, j.provider, j.provider_job_id, j.attempts,
    j.cancel_requested_at is not null, j.heartbeat_at, j.created_at
  from app.lora_training_jobs j where j.status in ('pending', 'training')
  union all
  select 'generation', g.brand_id, g.id, g.user_id, g.status, null, null, 0,
    g.cancel_requested_at is not null, g.heartbeat_at, g.created_at
  from app.generations g where g.status in ('pending', 'running')
  order by created_at
$$;

ALTER FUNCTION private.queue() OWNER TO onbrand_definer;

CREATE FUNCTION private.record(b text, what text, d jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  perform private.audit_append(b, coalesce(private.uid()::text, 'system:' || private.ctx('job_id')), what, d);
end $$;

ALTER FUNCTION private.record(b text, what text, d jsonb) OWNER TO onbrand_definer;

CREATE FUNCTION private.sign_up(email text, password_hash text) RETURNS TABLE(id uuid, created_at timestamp with time zone)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    AS $$
  insert into identity.users as u (email, password_hash) values (lower(sign_up.email), sign_up.password_hash)
  returning u.id, u.created_at
$$;

ALTER FUNCTION private.sign_up(email text, password_hash text) OWNER TO onbrand_identity;

CREATE FUNCTION private.tg_found_brand() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  insert into app.brand_users (brand_id, user_id, role) values (new.id, new.user_id, 'admin');
  return null;
end $$;

ALTER FUNCTION private.tg_found_brand() OWNER TO onbrand_definer;

CREATE FUNCTION private.tg_keep_an_admin() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
begin
  if old.role <> 'admin' then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('members:' || old.brand_id, 0));
  if not exists (select 1 from app.brand_users bu where bu.brand_id = old.brand_id and bu.role = 'admin') then
    raise exception 'a brand keeps at least one admin' using errcode = 'OB001';
  end if;
  return null;
end $$;

ALTER FUNCTION private.tg_keep_an_admin() OWNER TO onbrand_definer;

CREATE FUNCTION private.uid() RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    AS $$
  select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;

ALTER FUNCTION private.uid() OWNER TO onbrand_definer;

CREATE TABLE app.asset_captions (
    brand_id text NOT NULL,
    asset_id uuid NOT NULL,
    version integer NOT NULL,
    caption text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT asset_captions_caption_check CHECK ((char_length(caption) <= 5000)),
    CONSTRAINT asset_captions_version_check CHECK ((version > 0))
);

ALTER TABLE ONLY app.asset_captions FORCE ROW LEVEL SECURITY;

ALTER TABLE app.asset_captions OWNER TO onbrand_owner;

CREATE TABLE app.brand_assets (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    type text DEFAULT 'image'::text NOT NULL,
    object text NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    sha256 text NOT NULL,
    content_type text NOT NULL,
    bytes bigint NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT brand_assets_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT brand_assets_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT brand_assets_content_type_check CHECK ((content_type = ANY (ARRAY['image/png'::text, 'image/jpeg'::text, 'image/webp'::text]))),
    CONSTRAINT brand_assets_height_check CHECK ((height > 0)),
    CONSTRAINT brand_assets_metadata_check CHECK (((jsonb_typeof(metadata) = 'object'::text) AND (octet_length((metadata)::text) <= 20000))),
    CONSTRAINT brand_assets_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 255))),
    CONSTRAINT brand_assets_object_check CHECK ((object = ANY (ARRAY['logo'::text, 'product'::text, 'person'::text, 'packaging'::text, 'other'::text]))),
    CONSTRAINT brand_assets_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT brand_assets_type_check CHECK ((type = 'image'::text)),
    CONSTRAINT brand_assets_width_check CHECK ((width > 0))
);

ALTER TABLE ONLY app.brand_assets FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brand_assets OWNER TO onbrand_owner;

CREATE TABLE app.brand_users (
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT brand_users_role_check CHECK ((role = ANY (ARRAY['member'::text, 'admin'::text])))
);

ALTER TABLE ONLY app.brand_users FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brand_users OWNER TO onbrand_owner;

CREATE TABLE app.brands (
    id text NOT NULL,
    name text NOT NULL,
    home_region text DEFAULT 'us-east-1'::text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT brands_home_region_check CHECK ((home_region ~ '^[a-z0-9-]{2,32}$'::text)),
    CONSTRAINT brands_id_check CHECK (((id ~ '^[a-z0-9][a-z0-9-]{1,62}$'::text) AND (id !~ '^(us|eu|ap|sa|ca|me|af|il)-'::text))),
    CONSTRAINT brands_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 200)))
);

ALTER TABLE ONLY app.brands FORCE ROW LEVEL SECURITY;

ALTER TABLE app.brands OWNER TO onbrand_owner;

CREATE TABLE app.generated_images (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    generation_id uuid NOT NULL,
    model_id uuid,
    user_id uuid NOT NULL,
    index integer NOT NULL,
    seed bigint NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    content_type text NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    receipt jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT generated_images_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT generated_images_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT generated_images_content_type_check CHECK ((content_type = ANY (ARRAY['image/png'::text, 'image/jpeg'::text, 'image/webp'::text]))),
    CONSTRAINT generated_images_height_check CHECK ((height > 0)),
    CONSTRAINT generated_images_index_check CHECK ((index >= 0)),
    CONSTRAINT generated_images_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT generated_images_width_check CHECK ((width > 0))
);

ALTER TABLE ONLY app.generated_images FORCE ROW LEVEL SECURITY;

ALTER TABLE app.generated_images OWNER TO onbrand_owner;

CREATE TABLE app.generations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    model_id uuid,
    model_type text NOT NULL,
    model_name text NOT NULL,
    prompt text NOT NULL,
    negative_prompt text DEFAULT ''::text NOT NULL,
    num_images integer NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    seed bigint NOT NULL,
    num_inference_steps integer NOT NULL,
    guidance_scale double precision NOT NULL,
    true_cfg_scale double precision NOT NULL,
    lora_scale double precision NOT NULL,
    output_format text NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    progress integer DEFAULT 0 NOT NULL,
    error jsonb,
    cancel_requested_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    CONSTRAINT generations_height_check CHECK ((height > 0)),
    CONSTRAINT generations_model_name_check CHECK ((char_length(model_name) <= 100)),
    CONSTRAINT generations_model_type_check CHECK ((model_type = ANY (ARRAY['sd15'::text, 'sdxl'::text, 'flux'::text]))),
    CONSTRAINT generations_negative_prompt_check CHECK ((char_length(negative_prompt) <= 20000)),
    CONSTRAINT generations_num_images_check CHECK (((num_images >= 1) AND (num_images <= 64))),
    CONSTRAINT generations_num_inference_steps_check CHECK ((num_inference_steps > 0)),
    CONSTRAINT generations_output_format_check CHECK ((output_format = ANY (ARRAY['png'::text, 'jpeg'::text, 'webp'::text]))),
    CONSTRAINT generations_progress_check CHECK (((progress >= 0) AND (progress <= 100))),
    CONSTRAINT generations_prompt_check CHECK (((char_length(prompt) >= 1) AND (char_length(prompt) <= 20000))),
    CONSTRAINT generations_seed_check CHECK ((seed >= 0)),
    CONSTRAINT generations_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'running'::text, 'completed'::text, 'failed'::text, 'canceled'::text]))),
    CONSTRAINT generations_width_check CHECK ((width > 0))
);

ALTER TABLE ONLY app.generations FORCE ROW LEVEL SECURITY;

ALTER TABLE app.generations OWNER TO onbrand_owner;

CREATE TABLE app.idempotency_keys (
    brand_id text,
    user_id uuid NOT NULL,
    key text NOT NULL,
    route text NOT NULL,
    request_sha256 text NOT NULL,
    status integer,
    body jsonb,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT idempotency_keys_key_check CHECK (((char_length(key) >= 1) AND (char_length(key) <= 255))),
    CONSTRAINT idempotency_keys_request_sha256_check CHECK ((request_sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT idempotency_keys_route_check CHECK ((char_length(route) <= 200))
);

ALTER TABLE ONLY app.idempotency_keys FORCE ROW LEVEL SECURITY;

ALTER TABLE app.idempotency_keys OWNER TO onbrand_owner;

CREATE TABLE app.job_assets (
    brand_id text NOT NULL,
    job_id uuid NOT NULL,
    asset_id uuid NOT NULL
);

ALTER TABLE ONLY app.job_assets FORCE ROW LEVEL SECURITY;

ALTER TABLE app.job_assets OWNER TO onbrand_owner;

CREATE TABLE app.job_events (
    brand_id text NOT NULL,
    subject_id uuid GENERATED ALWAYS AS (COALESCE(job_id, generation_id)) STORED NOT NULL,
    seq bigint NOT NULL,
    job_id uuid,
    generation_id uuid,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    kind text NOT NULL,
    data jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT job_events_check CHECK ((num_nonnulls(job_id, generation_id) = 1)),
    CONSTRAINT job_events_data_check CHECK ((octet_length((data)::text) <= 20000)),
    CONSTRAINT job_events_kind_check CHECK ((kind ~ '^[a-z_]{1,40}$'::text)),
    CONSTRAINT job_events_seq_check CHECK ((seq > 0))
);

ALTER TABLE ONLY app.job_events FORCE ROW LEVEL SECURITY;

ALTER TABLE app.job_events OWNER TO onbrand_owner;

CREATE TABLE app.lora_training_jobs (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    model_type text NOT NULL,
    training_config jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    progress integer DEFAULT 0 NOT NULL,
    provider text DEFAULT 'ray'::text NOT NULL,
    provider_job_id text,
    attempts integer DEFAULT 0 NOT NULL,
    model_id uuid,
    model_url text,
    sample_images_urls jsonb DEFAULT '[]'::jsonb NOT NULL,
    error jsonb,
    metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    cancel_requested_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    CONSTRAINT lora_training_jobs_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT lora_training_jobs_model_type_check CHECK ((model_type = ANY (ARRAY['sd15'::text, 'sdxl'::text, 'flux'::text]))),
    CONSTRAINT lora_training_jobs_name_check CHECK (((char_length(name) >= 1) AND (char_length(name) <= 200))),
    CONSTRAINT lora_training_jobs_progress_check CHECK (((progress >= 0) AND (progress <= 100))),
    CONSTRAINT lora_training_jobs_provider_check CHECK ((provider = ANY (ARRAY['ray'::text, 'replicate'::text, 'runpod'::text]))),
    CONSTRAINT lora_training_jobs_provider_job_id_check CHECK ((char_length(provider_job_id) <= 200)),
    CONSTRAINT lora_training_jobs_sample_images_urls_check CHECK ((jsonb_typeof(sample_images_urls) = 'array'::text)),
    CONSTRAINT lora_training_jobs_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'training'::text, 'completed'::text, 'failed'::text, 'canceled'::text]))),
    CONSTRAINT lora_training_jobs_training_config_check CHECK (((jsonb_typeof(training_config) = 'object'::text) AND (octet_length((training_config)::text) <= 100000)))
);

ALTER TABLE ONLY app.lora_training_jobs FORCE ROW LEVEL SECURITY;

ALTER TABLE app.lora_training_jobs OWNER TO onbrand_owner;

CREATE TABLE app.models (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    brand_id text NOT NULL,
    job_id uuid,
    user_id uuid NOT NULL,
    model_type text NOT NULL,
    version integer NOT NULL,
    name text GENERATED ALWAYS AS (((model_type || '-lora-v'::text) || (version)::text)) STORED NOT NULL,
    object_name text NOT NULL COLLATE pg_catalog."C",
    sha256 text NOT NULL,
    bytes bigint NOT NULL,
    rank integer NOT NULL,
    trigger_word text NOT NULL,
    base_revision text NOT NULL,
    metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT models_base_revision_check CHECK ((char_length(base_revision) <= 200)),
    CONSTRAINT models_bytes_check CHECK ((bytes > 0)),
    CONSTRAINT models_check CHECK ((split_part(object_name, '/'::text, 1) = brand_id)),
    CONSTRAINT models_model_type_check CHECK ((model_type = ANY (ARRAY['sd15'::text, 'sdxl'::text, 'flux'::text]))),
    CONSTRAINT models_rank_check CHECK (((rank >= 1) AND (rank <= 1024))),
    CONSTRAINT models_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT models_trigger_word_check CHECK (((char_length(trigger_word) >= 1) AND (char_length(trigger_word) <= 100))),
    CONSTRAINT models_version_check CHECK ((version > 0))
);

ALTER TABLE ONLY app.models FORCE ROW LEVEL SECURITY;

ALTER TABLE app.models OWNER TO onbrand_owner;

CREATE TABLE app.numbers (
    brand_id text NOT NULL,
    series text NOT NULL,
    last bigint NOT NULL,
    CONSTRAINT numbers_last_check CHECK ((last > 0)),
    CONSTRAINT numbers_series_check CHECK ((series ~ '^[a-z0-9:.-]{1,80}$'::text))
);

ALTER TABLE ONLY app.numbers FORCE ROW LEVEL SECURITY;

ALTER TABLE app.numbers OWNER TO onbrand_owner;

CREATE TABLE audit.events (
    seq bigint NOT NULL,
    brand_id text NOT NULL,
    at timestamp with time zone NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    detail jsonb NOT NULL,
    prev bytea,
    hash bytea NOT NULL
);

ALTER TABLE ONLY audit.events FORCE ROW LEVEL SECURITY;

ALTER TABLE audit.events OWNER TO onbrand_owner;

CREATE TABLE identity.users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    email text NOT NULL,
    password_hash text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT users_email_check CHECK (((email = lower(email)) AND ((char_length(email) >= 3) AND (char_length(email) <= 254))))
);

ALTER TABLE ONLY identity.users FORCE ROW LEVEL SECURITY;

ALTER TABLE identity.users OWNER TO onbrand_identity;

CREATE TABLE storage.buckets (
    id text NOT NULL
);

ALTER TABLE ONLY storage.buckets FORCE ROW LEVEL SECURITY;

ALTER TABLE storage.buckets OWNER TO onbrand_owner;

CREATE TABLE storage.objects (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    bucket_id text NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    brand_id text GENERATED ALWAYS AS (split_part(name, '/'::text, 1)) STORED NOT NULL,
    user_id uuid NOT NULL,
    content_type text NOT NULL,
    bytes bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT objects_bytes_check CHECK ((bytes >= 0)),
    CONSTRAINT objects_content_type_check CHECK ((char_length(content_type) <= 100)),
    CONSTRAINT objects_name_check CHECK (((octet_length(name) <= 900) AND (name ~ '^[a-z0-9][a-z0-9-]{1,62}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){1,6}$'::text)))
);

ALTER TABLE ONLY storage.objects FORCE ROW LEVEL SECURITY;

ALTER TABLE storage.objects OWNER TO onbrand_owner;

ALTER TABLE ONLY app.asset_captions
    ADD CONSTRAINT asset_captions_pkey PRIMARY KEY (brand_id, asset_id, version);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_id_key UNIQUE (brand_id, id);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_sha256_key UNIQUE (brand_id, sha256);

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.brand_users
    ADD CONSTRAINT brand_users_pkey PRIMARY KEY (brand_id, user_id);

ALTER TABLE ONLY app.brands
    ADD CONSTRAINT brands_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_generation_id_index_key UNIQUE (brand_id, generation_id, index);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_id_key UNIQUE (brand_id, id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_brand_id_id_key UNIQUE (brand_id, id);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.idempotency_keys
    ADD CONSTRAINT idempotency_keys_user_id_brand_id_key_key UNIQUE NULLS NOT DISTINCT (user_id, brand_id, key);

ALTER TABLE ONLY app.job_assets
    ADD CONSTRAINT job_assets_pkey PRIMARY KEY (brand_id, job_id, asset_id);

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_pkey PRIMARY KEY (brand_id, subject_id, seq);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_id_key UNIQUE (brand_id, id);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_id_key UNIQUE (brand_id, id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_job_id_key UNIQUE (brand_id, job_id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_model_type_version_key UNIQUE (brand_id, model_type, version);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_object_name_key UNIQUE (brand_id, object_name);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (id);

ALTER TABLE ONLY app.numbers
    ADD CONSTRAINT numbers_pkey PRIMARY KEY (brand_id, series);

ALTER TABLE ONLY audit.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (brand_id, seq);

ALTER TABLE ONLY identity.users
    ADD CONSTRAINT users_email_key UNIQUE (email);

ALTER TABLE ONLY identity.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY storage.buckets
    ADD CONSTRAINT buckets_pkey PRIMARY KEY (id);

ALTER TABLE ONLY storage.objects
    ADD CONSTRAINT objects_bucket_id_name_key UNIQUE (bucket_id, name);

ALTER TABLE ONLY storage.objects
    ADD CONSTRAINT objects_pkey PRIMARY KEY (id);

CREATE INDEX brand_assets_by_time ON app.brand_assets USING btree (brand_id, created_at, id);

CREATE INDEX brand_users_by_user ON app.brand_users USING btree (user_id, brand_id);

CREATE INDEX generated_images_by_time ON app.generated_images USING btree (brand_id, created_at, id);

CREATE INDEX generations_by_time ON app.generations USING btree (brand_id, created_at, id);

CREATE INDEX generations_open ON app.generations USING btree (created_at) WHERE (status = ANY (ARRAY['pending'::text, 'running'::text]));

CREATE INDEX job_assets_by_asset ON app.job_assets USING btree (brand_id, asset_id);

CREATE INDEX jobs_by_time ON app.lora_training_jobs USING btree (brand_id, created_at, id);

CREATE INDEX jobs_open ON app.lora_training_jobs USING btree (created_at) WHERE (status = ANY (ARRAY['pending'::text, 'training'::text]));

CREATE INDEX models_by_time ON app.models USING btree (brand_id, created_at, id);

CREATE INDEX objects_by_brand ON storage.objects USING btree (brand_id, bucket_id);

CREATE TRIGGER asset_guard BEFORE DELETE ON app.brand_assets FOR EACH ROW EXECUTE FUNCTION app.tg_asset_guard();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.asset_captions FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.brand_assets FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.brand_users FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.generated_images FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.generations FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.idempotency_keys FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.job_assets FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.job_events FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.lora_training_jobs FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.models FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON app.numbers FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER found_brand AFTER INSERT ON app.brands FOR EACH ROW EXECUTE FUNCTION private.tg_found_brand();

CREATE TRIGGER generation_guard BEFORE UPDATE ON app.generations FOR EACH ROW EXECUTE FUNCTION app.tg_generation_guard();

CREATE TRIGGER job_guard BEFORE UPDATE ON app.lora_training_jobs FOR EACH ROW EXECUTE FUNCTION app.tg_job_guard();

CREATE TRIGGER keep_an_admin AFTER DELETE OR UPDATE ON app.brand_users FOR EACH ROW EXECUTE FUNCTION private.tg_keep_an_admin();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON audit.events FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

CREATE TRIGGER brand_immutable BEFORE UPDATE ON storage.objects FOR EACH ROW EXECUTE FUNCTION app.tg_brand_immutable();

ALTER TABLE ONLY app.asset_captions
    ADD CONSTRAINT asset_captions_brand_id_asset_id_fkey FOREIGN KEY (brand_id, asset_id) REFERENCES app.brand_assets(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.brand_assets
    ADD CONSTRAINT brand_assets_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.brand_users
    ADD CONSTRAINT brand_users_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_generation_id_fkey FOREIGN KEY (brand_id, generation_id) REFERENCES app.generations(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.generated_images
    ADD CONSTRAINT generated_images_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.generations
    ADD CONSTRAINT generations_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.idempotency_keys
    ADD CONSTRAINT idempotency_keys_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.job_assets
    ADD CONSTRAINT job_assets_brand_id_asset_id_fkey FOREIGN KEY (brand_id, asset_id) REFERENCES app.brand_assets(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.job_assets
    ADD CONSTRAINT job_assets_brand_id_job_id_fkey FOREIGN KEY (brand_id, job_id) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_brand_id_generation_id_fkey FOREIGN KEY (brand_id, generation_id) REFERENCES app.generations(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.job_events
    ADD CONSTRAINT job_events_brand_id_job_id_fkey FOREIGN KEY (brand_id, job_id) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.lora_training_jobs
    ADD CONSTRAINT lora_training_jobs_brand_id_model_id_fkey FOREIGN KEY (brand_id, model_id) REFERENCES app.models(brand_id, id) ON DELETE SET NULL (model_id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY app.models
    ADD CONSTRAINT models_brand_id_job_id_fkey FOREIGN KEY (brand_id, job_id) REFERENCES app.lora_training_jobs(brand_id, id) ON DELETE SET NULL (job_id);

ALTER TABLE ONLY app.numbers
    ADD CONSTRAINT numbers_brand_id_fkey FOREIGN KEY (brand_id) REFERENCES app.brands(id);

ALTER TABLE ONLY storage.objects
    ADD CONSTRAINT objects_bucket_id_fkey FOREIGN KEY (bucket_id) REFERENCES storage.buckets(id);

CREATE POLICY admin_delete ON app.brand_assets FOR DELETE TO authenticated USING ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

CREATE POLICY admin_delete ON app.brand_users FOR DELETE TO authenticated USING ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

CREATE POLICY admin_delete ON app.lora_training_jobs FOR DELETE TO authenticated USING ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

CREATE POLICY admin_delete ON app.models FOR DELETE TO authenticated USING ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

CREATE POLICY admin_insert ON app.brand_users FOR INSERT TO authenticated WITH CHECK ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

CREATE POLICY admin_update ON app.brand_users FOR UPDATE TO authenticated USING ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

ALTER TABLE app.asset_captions ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brand_assets ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brand_users ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.brands ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.generated_images ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.generations ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.idempotency_keys ENABLE ROW LEVEL SECURITY;

CREATE POLICY identity_select ON app.brand_users FOR SELECT TO onbrand_identity USING (((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])) AND ((user_id = ( SELECT private.uid() AS uid)) OR (brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])))));

ALTER TABLE app.job_assets ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.job_events ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.lora_training_jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY member_insert ON app.asset_captions FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.brand_assets FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.brands FOR INSERT TO authenticated WITH CHECK (((user_id = ( SELECT private.uid() AS uid)) AND (( SELECT private.ctx('brand_id'::text) AS ctx) IS NULL)));

CREATE POLICY member_insert ON app.generations FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_insert ON app.lora_training_jobs FOR INSERT TO authenticated WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY member_select ON app.asset_captions FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.brand_assets FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.brand_users FOR SELECT TO authenticated USING (((user_id = ( SELECT private.uid() AS uid)) OR (brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[]))));

CREATE POLICY member_select ON app.brands FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.generated_images FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.generations FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.job_assets FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.job_events FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.lora_training_jobs FOR SELECT TO authenticated USING (true);

CREATE POLICY member_select ON app.models FOR SELECT TO authenticated USING (true);

ALTER TABLE app.models ENABLE ROW LEVEL SECURITY;

ALTER TABLE app.numbers ENABLE ROW LEVEL SECURITY;

CREATE POLICY own_keys ON app.idempotency_keys TO authenticated USING ((user_id = ( SELECT private.uid() AS uid))) WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY owner_delete ON app.generated_images FOR DELETE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY owner_insert ON app.job_assets FOR INSERT TO authenticated WITH CHECK ((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_assets.brand_id) AND (j.id = job_assets.job_id) AND (j.user_id = ( SELECT private.uid() AS uid)) AND (j.status = 'pending'::text)))));

CREATE POLICY owner_update ON app.generations FOR UPDATE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid))) WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY owner_update ON app.lora_training_jobs FOR UPDATE TO authenticated USING ((user_id = ( SELECT private.uid() AS uid))) WITH CHECK ((user_id = ( SELECT private.uid() AS uid)));

CREATE POLICY system_insert ON app.generated_images FOR INSERT TO brand_system WITH CHECK ((EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = generated_images.brand_id) AND (g.id = generated_images.generation_id) AND (g.user_id = generated_images.user_id) AND (NOT (g.model_id IS DISTINCT FROM generated_images.model_id)) AND (g.status = 'running'::text)))));

CREATE POLICY system_insert ON app.job_events FOR INSERT TO brand_system WITH CHECK (((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_events.brand_id) AND (j.id = job_events.job_id)))) OR (EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = job_events.brand_id) AND (g.id = job_events.generation_id))))));

CREATE POLICY system_insert ON app.models FOR INSERT TO brand_system WITH CHECK ((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = models.brand_id) AND (j.id = models.job_id) AND (j.model_type = models.model_type) AND (j.user_id = models.user_id) AND (j.status = 'training'::text)))));

CREATE POLICY system_select ON app.asset_captions FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.job_assets ja
  WHERE ((ja.brand_id = asset_captions.brand_id) AND (ja.asset_id = asset_captions.asset_id)))));

CREATE POLICY system_select ON app.brand_assets FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.job_assets ja
  WHERE ((ja.brand_id = brand_assets.brand_id) AND (ja.asset_id = brand_assets.id)))));

CREATE POLICY system_select ON app.brands FOR SELECT TO brand_system USING (true);

CREATE POLICY system_select ON app.generated_images FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = generated_images.brand_id) AND (g.id = generated_images.generation_id)))));

CREATE POLICY system_select ON app.generations FOR SELECT TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'generation'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid)));

CREATE POLICY system_select ON app.job_assets FOR SELECT TO brand_system USING ((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_assets.brand_id) AND (j.id = job_assets.job_id) AND (j.status = ANY (ARRAY['pending'::text, 'training'::text]))))));

CREATE POLICY system_select ON app.job_events FOR SELECT TO brand_system USING (((EXISTS ( SELECT 1
   FROM app.lora_training_jobs j
  WHERE ((j.brand_id = job_events.brand_id) AND (j.id = job_events.job_id)))) OR (EXISTS ( SELECT 1
   FROM app.generations g
  WHERE ((g.brand_id = job_events.brand_id) AND (g.id = job_events.generation_id))))));

CREATE POLICY system_select ON app.lora_training_jobs FOR SELECT TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'training'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid)));

CREATE POLICY system_select ON app.models FOR SELECT TO brand_system USING (
CASE ( SELECT private.ctx('kind'::text) AS ctx)
    WHEN 'training'::text THEN (EXISTS ( SELECT 1
       FROM app.lora_training_jobs j
      WHERE (j.brand_id = models.brand_id)))
    WHEN 'generation'::text THEN (EXISTS ( SELECT 1
       FROM app.generations g
      WHERE ((g.brand_id = models.brand_id) AND (g.model_id = models.id) AND (g.status = ANY (ARRAY['pending'::text, 'running'::text])))))
    ELSE false
END);

CREATE POLICY system_update ON app.generations FOR UPDATE TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'generation'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid))) WITH CHECK (true);

CREATE POLICY system_update ON app.lora_training_jobs FOR UPDATE TO brand_system USING (((( SELECT private.ctx('kind'::text) AS ctx) = 'training'::text) AND (id = (( SELECT private.ctx('job_id'::text) AS ctx))::uuid) AND (user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid))) WITH CHECK (true);

CREATE POLICY wall_system ON app.asset_captions AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.brand_assets AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.brand_users AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.brands AS RESTRICTIVE TO brand_system USING ((id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.generated_images AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.generations AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.idempotency_keys AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.job_assets AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.job_events AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.lora_training_jobs AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.models AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_system ON app.numbers AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_user ON app.asset_captions AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.brand_assets AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.brand_users AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.brands AS RESTRICTIVE FOR SELECT TO authenticated USING ((id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.generated_images AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.generations AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.idempotency_keys AS RESTRICTIVE TO authenticated USING (((brand_id IS NULL) OR (brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])))) WITH CHECK (((brand_id IS NULL) OR (brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))));

CREATE POLICY wall_user ON app.job_assets AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.job_events AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.lora_training_jobs AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.models AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY wall_user ON app.numbers AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY admin_select ON audit.events FOR SELECT TO authenticated USING ((brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[])));

ALTER TABLE audit.events ENABLE ROW LEVEL SECURITY;

CREATE POLICY wall_system ON audit.events AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_user ON audit.events AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

CREATE POLICY own_code ON identity.users TO onbrand_identity USING (true) WITH CHECK (true);

ALTER TABLE identity.users ENABLE ROW LEVEL SECURITY;

CREATE POLICY anyone_select ON storage.buckets FOR SELECT TO authenticated, brand_system USING (true);

ALTER TABLE storage.buckets ENABLE ROW LEVEL SECURITY;

CREATE POLICY matrix_delete ON storage.objects FOR DELETE TO authenticated USING (
CASE
    WHEN ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) <> 'samples'::text)) THEN (user_id = ( SELECT private.uid() AS uid))
    ELSE (brand_id = ANY (( SELECT private.my_admin_brands() AS my_admin_brands)::text[]))
END);

CREATE POLICY member_insert ON storage.objects FOR INSERT TO authenticated WITH CHECK (((bucket_id = ANY (ARRAY['training-data'::text, 'brand-documents'::text])) AND (user_id = ( SELECT private.uid() AS uid))));

CREATE POLICY member_select ON storage.objects FOR SELECT TO authenticated USING (true);

ALTER TABLE storage.objects ENABLE ROW LEVEL SECURITY;

CREATE POLICY system_insert ON storage.objects FOR INSERT TO brand_system WITH CHECK (((user_id = (( SELECT private.ctx('on_behalf_of'::text) AS ctx))::uuid) AND
CASE ( SELECT private.ctx('kind'::text) AS ctx)
    WHEN 'training'::text THEN (((bucket_id = 'models'::text) OR ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) = 'samples'::text) AND (split_part(name, '/'::text, 3) = ( SELECT private.ctx('job_id'::text) AS ctx)))) AND (EXISTS ( SELECT 1
       FROM app.lora_training_jobs j
      WHERE ((j.brand_id = objects.brand_id) AND (j.status = 'training'::text)))))
    WHEN 'generation'::text THEN ((bucket_id = 'generated-content'::text) AND (split_part(name, '/'::text, 2) <> 'samples'::text) AND (EXISTS ( SELECT 1
       FROM app.generations g
      WHERE ((g.brand_id = objects.brand_id) AND (g.status = 'running'::text)))))
    ELSE false
END));

CREATE POLICY system_select ON storage.objects FOR SELECT TO brand_system USING (((EXISTS ( SELECT 1
   FROM app.brand_assets a
  WHERE ((a.brand_id = objects.brand_id) AND (a.object_name = objects.name) AND (objects.bucket_id = 'training-data'::text)))) OR (EXISTS ( SELECT 1
   FROM app.models m
  WHERE ((m.brand_id = objects.brand_id) AND (m.object_name = objects.name) AND (objects.bucket_id = 'models'::text))))));

CREATE POLICY wall_system ON storage.objects AS RESTRICTIVE TO brand_system USING ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx))) WITH CHECK ((brand_id = ( SELECT private.ctx('brand_id'::text) AS ctx)));

CREATE POLICY wall_user ON storage.objects AS RESTRICTIVE TO authenticated USING ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))) WITH CHECK ((brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[])));

GRANT USAGE ON SCHEMA app TO authenticated;
GRANT USAGE ON SCHEMA app TO brand_system;
GRANT USAGE ON SCHEMA app TO onbrand_definer;
GRANT USAGE ON SCHEMA app TO onbrand_identity;

GRANT USAGE ON SCHEMA audit TO authenticated;
GRANT USAGE ON SCHEMA audit TO onbrand_definer;

GRANT USAGE ON SCHEMA private TO authenticated;
GRANT USAGE ON SCHEMA private TO brand_system;
GRANT ALL ON SCHEMA private TO onbrand_definer;
GRANT USAGE ON SCHEMA private TO anon;
GRANT USAGE ON SCHEMA private TO onbrand_dispatcher;
GRANT ALL ON SCHEMA private TO onbrand_identity;

REVOKE USAGE ON SCHEMA public FROM PUBLIC;

GRANT USAGE ON SCHEMA storage TO authenticated;
GRANT USAGE ON SCHEMA storage TO brand_system;
GRANT USAGE ON SCHEMA storage TO onbrand_definer;

REVOKE ALL ON PROCEDURE app.build_wall(IN t regclass) FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_asset_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_brand_immutable() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_generation_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION app.tg_job_guard() FROM PUBLIC;

REVOKE ALL ON FUNCTION private.acts_in(b text) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.audit_append(b text, act text, what text, d jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION private.ctx(k text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.ctx(k text) TO authenticated;
GRANT ALL ON FUNCTION private.ctx(k text) TO brand_system;
GRANT ALL ON FUNCTION private.ctx(k text) TO onbrand_owner;
GRANT ALL ON FUNCTION private.ctx(k text) TO onbrand_identity;

REVOKE ALL ON FUNCTION private.find_login(email text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.find_login(email text) TO anon;

REVOKE ALL ON FUNCTION private.find_user(b text, email text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.find_user(b text, email text) TO authenticated;

REVOKE ALL ON FUNCTION private.me() FROM PUBLIC;
GRANT ALL ON FUNCTION private.me() TO authenticated;

REVOKE ALL ON FUNCTION private.member_emails(b text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.member_emails(b text) TO authenticated;

REVOKE ALL ON FUNCTION private.my_admin_brands() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_admin_brands() TO authenticated;
GRANT ALL ON FUNCTION private.my_admin_brands() TO brand_system;
GRANT ALL ON FUNCTION private.my_admin_brands() TO onbrand_owner;
GRANT ALL ON FUNCTION private.my_admin_brands() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.my_brands() FROM PUBLIC;
GRANT ALL ON FUNCTION private.my_brands() TO authenticated;
GRANT ALL ON FUNCTION private.my_brands() TO brand_system;
GRANT ALL ON FUNCTION private.my_brands() TO onbrand_owner;
GRANT ALL ON FUNCTION private.my_brands() TO onbrand_identity;

REVOKE ALL ON FUNCTION private.next_number(b text, what text, n integer) FROM PUBLIC;
GRANT ALL ON FUNCTION private.next_number(b text, what text, n integer) TO authenticated;
GRANT ALL ON FUNCTION private.next_number(b text, what text, n integer) TO brand_system;

REVOKE ALL ON FUNCTION private.queue() FROM PUBLIC;
GRANT ALL ON FUNCTION private.queue() TO onbrand_dispatcher;

REVOKE ALL ON FUNCTION private.record(b text, what text, d jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION private.record(b text, what text, d jsonb) TO authenticated;
GRANT ALL ON FUNCTION private.record(b text, what text, d jsonb) TO brand_system;

REVOKE ALL ON FUNCTION private.sign_up(email text, password_hash text) FROM PUBLIC;
GRANT ALL ON FUNCTION private.sign_up(email text, password_hash text) TO anon;

REVOKE ALL ON FUNCTION private.tg_found_brand() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_found_brand() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.tg_keep_an_admin() FROM PUBLIC;
GRANT ALL ON FUNCTION private.tg_keep_an_admin() TO onbrand_owner;

REVOKE ALL ON FUNCTION private.uid() FROM PUBLIC;
GRANT ALL ON FUNCTION private.uid() TO authenticated;
GRANT ALL ON FUNCTION private.uid() TO brand_system;
GRANT ALL ON FUNCTION private.uid() TO onbrand_owner;
GRANT ALL ON FUNCTION private.uid() TO onbrand_identity;

GRANT SELECT ON TABLE app.asset_captions TO authenticated;
GRANT SELECT ON TABLE app.asset_captions TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(asset_id) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(version) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(caption) ON TABLE app.asset_captions TO authenticated;

GRANT INSERT(user_id) ON TABLE app.asset_captions TO authenticated;

GRANT SELECT,DELETE ON TABLE app.brand_assets TO authenticated;
GRANT SELECT ON TABLE app.brand_assets TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(user_id) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(name) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(type) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(object) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(object_name) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(sha256) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(content_type) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(bytes) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(width) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(height) ON TABLE app.brand_assets TO authenticated;

GRANT INSERT(metadata) ON TABLE app.brand_assets TO authenticated;

GRANT SELECT,INSERT ON TABLE app.brand_users TO onbrand_definer;
GRANT SELECT,DELETE ON TABLE app.brand_users TO authenticated;
GRANT SELECT ON TABLE app.brand_users TO onbrand_identity;

GRANT INSERT(brand_id) ON TABLE app.brand_users TO authenticated;

GRANT INSERT(user_id) ON TABLE app.brand_users TO authenticated;

GRANT INSERT(role),UPDATE(role) ON TABLE app.brand_users TO authenticated;

GRANT SELECT ON TABLE app.brands TO authenticated;
GRANT SELECT ON TABLE app.brands TO brand_system;

GRANT INSERT(id) ON TABLE app.brands TO authenticated;

GRANT INSERT(name) ON TABLE app.brands TO authenticated;

GRANT INSERT(home_region) ON TABLE app.brands TO authenticated;

GRANT INSERT(user_id) ON TABLE app.brands TO authenticated;

GRANT SELECT,DELETE ON TABLE app.generated_images TO authenticated;
GRANT SELECT ON TABLE app.generated_images TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(generation_id) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(model_id) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(user_id) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(index) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(seed) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(object_name) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(content_type) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(width) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(height) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(bytes) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(sha256) ON TABLE app.generated_images TO brand_system;

GRANT INSERT(receipt) ON TABLE app.generated_images TO brand_system;

GRANT SELECT ON TABLE app.generations TO authenticated;
GRANT SELECT ON TABLE app.generations TO brand_system;

GRANT SELECT(id) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(brand_id) ON TABLE app.generations TO authenticated;
GRANT SELECT(brand_id) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(user_id) ON TABLE app.generations TO authenticated;
GRANT SELECT(user_id) ON TABLE app.generations TO onbrand_definer;

GRANT INSERT(model_id) ON TABLE app.generations TO authenticated;

GRANT INSERT(model_type) ON TABLE app.generations TO authenticated;

GRANT INSERT(model_name) ON TABLE app.generations TO authenticated;

GRANT INSERT(prompt) ON TABLE app.generations TO authenticated;

GRANT INSERT(negative_prompt) ON TABLE app.generations TO authenticated;

GRANT INSERT(num_images) ON TABLE app.generations TO authenticated;

GRANT INSERT(width) ON TABLE app.generations TO authenticated;

GRANT INSERT(height) ON TABLE app.generations TO authenticated;

GRANT INSERT(seed) ON TABLE app.generations TO authenticated;

GRANT INSERT(num_inference_steps) ON TABLE app.generations TO authenticated;

GRANT INSERT(guidance_scale) ON TABLE app.generations TO authenticated;

GRANT INSERT(true_cfg_scale) ON TABLE app.generations TO authenticated;

GRANT INSERT(lora_scale) ON TABLE app.generations TO authenticated;

GRANT INSERT(output_format) ON TABLE app.generations TO authenticated;

GRANT UPDATE(status) ON TABLE app.generations TO brand_system;
GRANT SELECT(status) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(progress) ON TABLE app.generations TO brand_system;

GRANT UPDATE(error) ON TABLE app.generations TO brand_system;

GRANT UPDATE(cancel_requested_at) ON TABLE app.generations TO authenticated;
GRANT SELECT(cancel_requested_at) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(heartbeat_at) ON TABLE app.generations TO brand_system;
GRANT SELECT(heartbeat_at) ON TABLE app.generations TO onbrand_definer;

GRANT SELECT(created_at) ON TABLE app.generations TO onbrand_definer;

GRANT UPDATE(started_at) ON TABLE app.generations TO brand_system;

GRANT UPDATE(completed_at) ON TABLE app.generations TO brand_system;

GRANT SELECT,DELETE ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(brand_id) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(user_id) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(key) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(route) ON TABLE app.idempotency_keys TO authenticated;

GRANT INSERT(request_sha256) ON TABLE app.idempotency_keys TO authenticated;

GRANT UPDATE(status) ON TABLE app.idempotency_keys TO authenticated;

GRANT UPDATE(body) ON TABLE app.idempotency_keys TO authenticated;

GRANT SELECT ON TABLE app.job_assets TO authenticated;
GRANT SELECT ON TABLE app.job_assets TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.job_assets TO authenticated;

GRANT INSERT(job_id) ON TABLE app.job_assets TO authenticated;

GRANT INSERT(asset_id) ON TABLE app.job_assets TO authenticated;

GRANT SELECT ON TABLE app.job_events TO authenticated;
GRANT SELECT ON TABLE app.job_events TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.job_events TO brand_system;

GRANT INSERT(seq) ON TABLE app.job_events TO brand_system;

GRANT INSERT(job_id) ON TABLE app.job_events TO brand_system;

GRANT INSERT(generation_id) ON TABLE app.job_events TO brand_system;

GRANT INSERT(kind) ON TABLE app.job_events TO brand_system;

GRANT INSERT(data) ON TABLE app.job_events TO brand_system;

GRANT SELECT,DELETE ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT ON TABLE app.lora_training_jobs TO brand_system;

GRANT SELECT(id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(brand_id) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(brand_id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(user_id) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(user_id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT INSERT(name),UPDATE(name) ON TABLE app.lora_training_jobs TO authenticated;

GRANT INSERT(model_type) ON TABLE app.lora_training_jobs TO authenticated;

GRANT INSERT(training_config) ON TABLE app.lora_training_jobs TO authenticated;

GRANT UPDATE(status) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(status) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(progress) ON TABLE app.lora_training_jobs TO brand_system;

GRANT INSERT(provider) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(provider) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(provider_job_id) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(provider_job_id) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(attempts) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(attempts) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(model_id) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(model_url) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(sample_images_urls) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(error) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(metrics) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(cancel_requested_at) ON TABLE app.lora_training_jobs TO authenticated;
GRANT SELECT(cancel_requested_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(heartbeat_at) ON TABLE app.lora_training_jobs TO brand_system;
GRANT SELECT(heartbeat_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT SELECT(created_at) ON TABLE app.lora_training_jobs TO onbrand_definer;

GRANT UPDATE(started_at) ON TABLE app.lora_training_jobs TO brand_system;

GRANT UPDATE(completed_at) ON TABLE app.lora_training_jobs TO brand_system;

GRANT SELECT,DELETE ON TABLE app.models TO authenticated;
GRANT SELECT ON TABLE app.models TO brand_system;

GRANT INSERT(brand_id) ON TABLE app.models TO brand_system;

GRANT INSERT(job_id) ON TABLE app.models TO brand_system;

GRANT INSERT(user_id) ON TABLE app.models TO brand_system;

GRANT INSERT(model_type) ON TABLE app.models TO brand_system;

GRANT INSERT(version) ON TABLE app.models TO brand_system;

GRANT INSERT(object_name) ON TABLE app.models TO brand_system;

GRANT INSERT(sha256) ON TABLE app.models TO brand_system;

GRANT INSERT(bytes) ON TABLE app.models TO brand_system;

GRANT INSERT(rank) ON TABLE app.models TO brand_system;

GRANT INSERT(trigger_word) ON TABLE app.models TO brand_system;

GRANT INSERT(base_revision) ON TABLE app.models TO brand_system;

GRANT INSERT(metrics) ON TABLE app.models TO brand_system;

GRANT SELECT,INSERT,UPDATE ON TABLE app.numbers TO onbrand_definer;

GRANT SELECT,INSERT ON TABLE audit.events TO onbrand_definer;
GRANT SELECT ON TABLE audit.events TO authenticated;

GRANT SELECT ON TABLE storage.buckets TO authenticated;
GRANT SELECT ON TABLE storage.buckets TO brand_system;

GRANT SELECT,DELETE ON TABLE storage.objects TO authenticated;
GRANT SELECT ON TABLE storage.objects TO brand_system;

GRANT INSERT(bucket_id) ON TABLE storage.objects TO authenticated;
GRANT INSERT(bucket_id) ON TABLE storage.objects TO brand_system;

GRANT INSERT(name) ON TABLE storage.objects TO authenticated;
GRANT INSERT(name) ON TABLE storage.objects TO brand_system;

GRANT INSERT(user_id) ON TABLE storage.objects TO authenticated;
GRANT INSERT(user_id) ON TABLE storage.objects TO brand_system;

GRANT INSERT(content_type) ON TABLE storage.objects TO authenticated;
GRANT INSERT(content_type) ON TABLE storage.objects TO brand_system;

GRANT INSERT(bytes) ON TABLE storage.objects TO authenticated;
GRANT INSERT(bytes) ON TABLE storage.objects TO brand_system;

ALTER DEFAULT PRIVILEGES FOR ROLE onbrand_definer REVOKE ALL ON FUNCTIONS FROM PUBLIC;

ALTER DEFAULT PRIVILEGES FOR ROLE onbrand_identity REVOKE ALL ON FUNCTIONS FROM PUBLIC;

ALTER DEFAULT PRIVILEGES FOR ROLE onbrand_owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;
